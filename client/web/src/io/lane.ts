// What the conductor needs of a lane's output, and the one through Media Source Extensions.

import { Line } from "../rules/place";
import { readMedia } from "../rules/mp4";

/** Plays the chunks of one lane where it is told to. Times are milliseconds since the Unix epoch, of the recording. */
export interface Output {
  readonly line: Line;
  /** Takes a chunk that is whole; false: this browser can't play it. */
  add(started: number, ended: number, bytes: Uint8Array<ArrayBuffer>): boolean;
  /** Plays at this time; the one that `leads` is not hurried. */
  play(at: number, rate: number, leads: boolean): void;
  pause(): void;
  /** Where it is, if it runs by itself. */
  clock(): number | null;
  /** May be heard from now on; called in a tap. */
  unlock(): Promise<void>;
  /** Frees what lies before this time. */
  trim(before: number): void;
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

interface Append {
  started: number;
  begins: number;
  duration: number;
  type: string;
  bytes: Uint8Array<ArrayBuffer>;
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
  private adding: { start: number; end: number } | null = null;
  private cutTo: number | null = null;

  constructor(private readonly element: HTMLMediaElement, private readonly shared: Shared) {
    this.element.addEventListener("error", () => this.rebuild());
    shared.moved.push(() => this.rebuild());
  }

  add(started: number, _ended: number, bytes: Uint8Array<ArrayBuffer>): boolean {
    const media = readMedia(bytes);
    if (!media || !mediaSource()?.isTypeSupported(media.type)) return false;
    this.shared.origin ??= started - BEFORE_MS;
    if (started < this.shared.origin) {
      // What came first said that it was much later: both elements begin anew from here.
      this.shared.origin = started - BEFORE_MS;
      for (const moved of this.shared.moved) moved();
    }
    this.origin = this.shared.origin;
    if (this.queue.length < MAX_QUEUE) this.queue.push({ started, ...media, bytes });
    if (!this.source) this.attach(media.type);
    this.next();
    return true;
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

  trim(before: number): void {
    if (this.line.start < before - 60_000) this.cutTo = before;
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
      this.buffer.addEventListener("updateend", () => this.updated());
      this.next();
    });
    this.element.src = URL.createObjectURL(source);
  }

  private updated(): void {
    if (this.adding && this.source?.readyState === "open") this.line.add(this.adding);
    this.adding = null;
    this.next();
  }

  private next(): void {
    const { buffer, source, origin } = this;
    if (!buffer || buffer.updating || source?.readyState !== "open" || origin === null) return;
    if (this.cutTo !== null) {
      const to = (this.cutTo - origin) / 1000;
      this.line.cut(this.cutTo);
      this.cutTo = null;
      if (to > 0) return buffer.remove(0, to);
    }
    const append = this.queue.shift();
    if (append) this.append(buffer, append, origin);
  }

  private append(buffer: SourceBuffer, append: Append, origin: number): void {
    const place = this.line.place(append.started, append.duration * 1000);
    try {
      if (append.type !== this.type) buffer.changeType(append.type);
      this.type = append.type;
      buffer.appendWindowEnd = place.limit === Infinity ? Infinity : (place.limit - origin) / 1000;
      buffer.timestampOffset = (place.start - origin) / 1000 - append.begins;
      this.adding = place;
      buffer.appendBuffer(append.bytes);
    } catch (error) {
      this.adding = null;
      if ((error as DOMException).name !== "QuotaExceededError" || !this.line.spans.length) return;
      // Full: the older half goes.
      this.queue.unshift(append);
      this.cutTo = (this.line.start + this.line.end) / 2;
      this.next();
    }
  }

  /** The browser gave up on what it was given: it starts anew with what comes next. */
  private rebuild(): void {
    if (!this.source) return;
    this.source = this.buffer = this.adding = null;
    this.line = new Line();
    this.origin = this.shared.origin;
    const next = this.queue[0];
    if (next) this.attach(next.type);
  }
}
