// Output without Media Source Extensions: sound by Web Audio, picture by one blob per chunk.

import { readMedia, rebased } from "../rules/mp4";
import { Line, type Laid } from "../rules/place";
import type { Output, Piece } from "./lane";

/** How far ahead sound is scheduled, milliseconds. */
const AHEAD_MS = 3000;
const KEPT = 90;

interface Kept<T> extends Laid {
  data: T;
}

/** The pieces of a lane, by time; what is farthest from the playhead goes first. */
export class Pieces<T> {
  list: Kept<T>[] = [];
  /** The playhead. */
  at: number | null = null;

  constructor(readonly line: Line, private readonly freed: (data: T) => void, private readonly most = KEPT) {}

  add({ started, key, newest }: Omit<Piece, "bytes" | "ended">, length: number, data: T): void {
    const place = this.line.place(started, length, key);
    if (!place) return this.freed(data);
    const { start, end } = place;
    this.drop(key);
    this.line.add({ start, end, key }, newest);
    this.list = [...this.list, { start, end, key, data }].sort((a, b) => a.start - b.start);
    while (this.list.length > this.most) this.drop(this.farthest());
  }

  drop(key: string): void {
    const gone = this.list.find((piece) => piece.key === key);
    if (!gone) return;
    this.list = this.list.filter((piece) => piece !== gone);
    this.line.drop(key);
    this.freed(gone.data);
  }

  private farthest(): string {
    const [first, last] = [this.list[0], this.list[this.list.length - 1]] as [Kept<T>, Kept<T>];
    const at = this.at ?? last.end;
    return at - first.end >= last.start - at ? first.key : last.key;
  }
}

export class PlainSound implements Output {
  readonly line = new Line();
  private readonly pieces = new Pieces<AudioBuffer>(this.line, () => undefined);
  private readonly context: AudioContext;
  private readonly playing = new Map<Kept<AudioBuffer>, AudioBufferSourceNode>();
  played: (can: boolean) => void = () => undefined;
  /** Recording time and the context's time that belong together. */
  private anchor: { at: number; time: number } | null = null;

  constructor() {
    const Context = window.AudioContext ?? (window as unknown as { webkitAudioContext: typeof AudioContext }).webkitAudioContext;
    this.context = new Context();
  }

  add(piece: Piece): void {
    if (!readMedia(piece.bytes)) return this.played(false);
    const decoded = (sound: AudioBuffer): void => {
      this.pieces.add(piece, sound.duration * 1000, sound);
      this.played(true);
    };
    // Older browsers know no promise here; newer ones tell both ways.
    void this.context.decodeAudioData(rebased(piece.bytes).buffer, decoded, () => this.played(false))?.catch(() => undefined);
  }

  play(at: number): void {
    if (this.context.state !== "running") return;
    const there = this.clock();
    if (there === null || Math.abs(there - at) > 350) {
      this.pause();
      this.anchor = { at, time: this.context.currentTime };
    }
    const anchor = this.anchor as { at: number; time: number };
    for (const piece of this.pieces.list) {
      if (piece.end <= at || piece.start > at + AHEAD_MS || this.playing.has(piece)) continue;
      const node = this.context.createBufferSource();
      node.buffer = piece.data;
      node.connect(this.context.destination);
      const when = anchor.time + (piece.start - anchor.at) / 1000;
      const late = Math.max(0, this.context.currentTime - when);
      node.start(Math.max(when, this.context.currentTime), late);
      node.onended = () => this.playing.delete(piece);
      this.playing.set(piece, node);
    }
  }

  pause(): void {
    this.playing.forEach((node) => {
      node.onended = null;
      node.stop();
    });
    this.playing.clear();
    this.anchor = null;
  }

  clock(): number | null {
    if (!this.anchor || this.context.state !== "running") return null;
    return this.anchor.at + (this.context.currentTime - this.anchor.time) * 1000;
  }

  unlock(): Promise<void> {
    return this.context.resume();
  }

  near(at: number): void {
    this.pieces.at = at;
  }
}

export class PlainPicture implements Output {
  readonly line = new Line();
  private readonly pieces = new Pieces<string>(this.line, (url) => URL.revokeObjectURL(url));
  private shown: Kept<string> | null = null;
  played: (can: boolean) => void = () => undefined;

  constructor(private readonly element: HTMLVideoElement) {
    element.addEventListener("loadeddata", () => this.played(true));
    element.addEventListener("error", () => {
      // It stays away from the line, so that nothing waits for it.
      if (this.shown) this.pieces.drop(this.shown.key);
      if (this.shown) this.played(false);
      this.shown = null;
    });
  }

  add(piece: Piece): void {
    const media = readMedia(piece.bytes);
    const length = media ? media.duration * 1000 : piece.ended - piece.started;
    this.pieces.add(piece, length, URL.createObjectURL(new Blob([rebased(piece.bytes)], { type: "video/mp4" })));
  }

  play(at: number): void {
    const piece = this.pieces.list.find((one) => one.start <= at && at < one.end);
    if (!piece) return this.pause();
    const { element } = this;
    if (piece !== this.shown) {
      this.shown = piece;
      element.src = piece.data;
    }
    const wanted = (at - piece.start) / 1000;
    if (element.readyState && !element.seeking && Math.abs(element.currentTime - wanted) > 0.5) element.currentTime = wanted;
    if (element.paused && !element.ended) element.play().catch(() => undefined);
  }

  pause(): void {
    if (!this.element.paused) this.element.pause();
  }

  clock(): null {
    return null;
  }

  async unlock(): Promise<void> {
    // The picture is silent.
  }

  near(at: number): void {
    this.pieces.at = at;
  }
}
