// What the conductor needs of a lane's output, and the one through Media Source Extensions.

import { farthest, Line, type Laid, type Span } from "../rules/place";
import { readMedia } from "../rules/mp4";

/** A chunk that is whole and open. */
export interface Piece {
  key: string;
  /** Milliseconds since the Unix epoch, of the recording. */
  started: number;
  ended: number;
  /** Of its lane it is the last one recorded so far. */
  newest: boolean;
  bytes: Uint8Array<ArrayBuffer>;
}

/** Plays the chunks of one lane where it is told to. Times are milliseconds since the Unix epoch, of the recording. */
export interface Output {
  readonly line: Line;
  /** Hears for each piece, sooner or later, whether this browser can play it. */
  played: (can: boolean) => void;
  add(piece: Piece): void;
  /** Plays at this time; the one that `leads` is not hurried. */
  play(at: number, rate: number, leads: boolean): void;
  pause(): void;
  /** Where it is, if it runs by itself. */
  clock(): number | null;
  /** May be heard from now on; called in a tap. */
  unlock(): Promise<void>;
  /** The playhead is here: what lies far from it goes first. */
  near(at: number): void;
}

type Source = MediaSource & { readonly handle?: never };
interface Managed {
  ManagedMediaSource?: { new (): Source; isTypeSupported(type: string): boolean };
}

/** MediaSource, or what iPhones have instead. */
export function mediaSource(): { new (): Source; isTypeSupported(type: string): boolean } | null {
  const managed = (globalThis as Managed).ManagedMediaSource;
  return (typeof MediaSource === "undefined" ? managed : (MediaSource as unknown as Managed["ManagedMediaSource"])) ?? null;
}

/** From so far apart on the element is sent to its place instead of hurried there. Seconds. */
const FAR = 0.35;
const NEAR = 0.04;
/** The recording begins on the elements' line here, so that older chunks can still go before it. */
const BEFORE_MS = 24 * 3600 * 1000;
const MAX_QUEUE = 600;
/** What lies further back than this is freed, a minute at a time; it is fetched again when it is wanted. */
const BEHIND_MS = 10 * 60_000;
const FREED_MS = 60_000;

interface Append extends Piece {
  begins: number;
  duration: number;
  type: string;
}

/** What sound and picture have in common: where their elements' lines begin, and who is to hear that it moved. */
export interface Shared {
  origin: number | null;
  moved: (() => void)[];
}

export class MseOutput implements Output {
  line = new Line();
  private origin: number | null = null;
  private source: Source | null = null;
  private buffer: SourceBuffer | null = null;
  private type = "";
  private queue: Append[] = [];
  private adding: { place: Laid; newest: boolean } | null = null;
  private freeing: Span | null = null;
  private at: number | null = null;
  played: (can: boolean) => void = () => undefined;

  constructor(private readonly element: HTMLMediaElement, private readonly shared: Shared) {
    this.element.addEventListener("error", () => this.failed());
    shared.moved.push(() => this.rebuild());
  }

  add(piece: Piece): void {
    const media = readMedia(piece.bytes);
    if (!media || !mediaSource()?.isTypeSupported(media.type)) return this.played(false);
    const { started } = piece;
    this.shared.origin ??= started - BEFORE_MS;
    if (started < this.shared.origin) {
      // What came first said that it was much later: both elements begin anew from here.
      this.shared.origin = started - BEFORE_MS;
      for (const moved of this.shared.moved) moved();
    }
    this.origin = this.shared.origin;
    if (this.queue.length < MAX_QUEUE) this.queue.push({ ...piece, ...media });
    if (!this.source) this.attach(media.type);
    this.next();
  }

  play(at: number, rate: number, leads: boolean): void {
    const { element } = this;
    if (this.origin === null || !element.readyState) return;
    const drift = element.currentTime - (at - this.origin) / 1000;
    if (Math.abs(drift) > FAR) {
      if (!element.seeking) element.currentTime = (at - this.origin) / 1000;
    } else {
      const pull = leads || Math.abs(drift) < NEAR ? 1 : Math.min(1.1, Math.max(0.9, 1 - drift / 2));
      if (Math.abs(element.playbackRate - rate * pull) > 0.005) element.playbackRate = rate * pull;
    }
    if (element.paused) element.play().catch(() => undefined);
  }

  pause(): void {
    if (!this.element.paused) this.element.pause();
  }

  clock(): number | null {
    const { element, origin } = this;
    if (origin === null || element.paused || element.seeking || element.readyState < 3) return null;
    return element.currentTime * 1000 + origin;
  }

  async unlock(): Promise<void> {
    this.element.muted = false;
    await this.element.play();
  }

  near(at: number): void {
    this.at = at;
    if (this.line.start < at - BEHIND_MS - FREED_MS) this.freeing ??= { start: this.line.start, end: at - BEHIND_MS };
    this.next();
  }

  private attach(type: string): void {
    const Kind = mediaSource();
    if (!Kind) return;
    const source = new Kind();
    this.source = source;
    this.type = type;
    // Without it an iPhone does not open the source.
    (this.element as { disableRemotePlayback?: boolean }).disableRemotePlayback = true;
    source.addEventListener("sourceopen", () => {
      if (this.source !== source || this.buffer) return;
      URL.revokeObjectURL(this.element.src);
      this.buffer = source.addSourceBuffer(type);
      const { buffer } = this;
      buffer.addEventListener("updateend", () => buffer === this.buffer && this.updated());
      // A browser that manages its memory frees what it likes, and says so.
      buffer.addEventListener("bufferedchange", () => buffer === this.buffer && this.compare());
      this.next();
    });
    this.element.src = URL.createObjectURL(source);
  }

  private updated(): void {
    const { adding } = this;
    this.adding = null;
    if (adding && this.source?.readyState === "open") this.line.add(adding.place, adding.newest);
    this.compare();
    if (adding && this.line.spans.some(({ key }) => key === adding.place.key)) this.played(true);
    this.next();
  }

  /** What the browser freed by itself is not on the line any more. */
  private compare(): void {
    const { buffer, origin } = this;
    if (!buffer || origin === null || this.source?.readyState !== "open") return;
    const there: Span[] = [];
    const { buffered } = buffer;
    for (let i = 0; i < buffered.length; i++) there.push({ start: buffered.start(i) * 1000 + origin, end: buffered.end(i) * 1000 + origin });
    this.line.keep(there);
  }

  private next(): void {
    const { buffer, source, origin, freeing } = this;
    if (!buffer || buffer.updating || source?.readyState !== "open" || origin === null) return;
    this.freeing = null;
    if (freeing) {
      this.line.cut(freeing);
      const [from, to] = [Math.max(0, freeing.start - origin) / 1000, (freeing.end - origin) / 1000];
      if (to > from) return buffer.remove(from, to);
    }
    const append = this.queue.shift();
    if (append) this.append(buffer, append, origin);
  }

  private append(buffer: SourceBuffer, append: Append, origin: number): void {
    const place = this.line.place(append.started, append.duration * 1000, append.key);
    if (!place) return this.next();
    try {
      if (append.type !== this.type) buffer.changeType(append.type);
      this.type = append.type;
      buffer.appendWindowEnd = place.limit === Infinity ? Infinity : (place.limit - origin) / 1000;
      buffer.timestampOffset = (place.start - origin) / 1000 - append.begins;
      this.adding = { place, newest: append.newest };
      buffer.appendBuffer(append.bytes);
    } catch (error) {
      this.adding = null;
      if ((error as DOMException).name !== "QuotaExceededError") return;
      // Full: what is farthest from what plays goes. Where all is near to it, this piece does.
      this.freeing = farthest(this.line, this.at ?? this.line.end);
      if (this.freeing) this.queue.unshift(append);
      this.next();
    }
  }

  private failed(): void {
    if (this.source) this.played(false);
    this.rebuild();
  }

  /** The browser gave up on what it was given: it starts anew with what comes next. */
  private rebuild(): void {
    if (!this.source) return;
    this.source = this.buffer = this.adding = this.freeing = null;
    this.line = new Line();
    this.origin = this.shared.origin;
    const next = this.queue[0];
    if (next) this.attach(next.type);
  }
}
