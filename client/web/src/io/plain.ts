// Output without Media Source Extensions: sound by Web Audio, picture by one blob per chunk.

import { readMedia, rebased } from "../rules/mp4";
import { Line, type Span } from "../rules/place";
import type { Output } from "./lane";

/** How far ahead sound is scheduled, milliseconds. */
const AHEAD_MS = 3000;
const KEPT = 90;

interface Piece<T> extends Span {
  data: T;
}

/** The pieces of a lane, by time; the oldest go first. */
class Pieces<T> {
  list: Piece<T>[] = [];

  constructor(readonly line: Line, private readonly freed: (data: T) => void) {}

  add(started: number, length: number, data: T): void {
    const { start, end } = this.line.place(started, length);
    this.line.add({ start, end });
    this.list = [...this.list.filter((piece) => piece.start !== start), { start, end, data }].sort((a, b) => a.start - b.start);
    while (this.list.length > KEPT) {
      this.freed((this.list.shift() as Piece<T>).data);
      this.line.cut((this.list[0] as Piece<T>).start);
    }
  }
}

export class PlainSound implements Output {
  readonly line = new Line();
  private readonly pieces = new Pieces<AudioBuffer>(this.line, () => undefined);
  private readonly context: AudioContext;
  private readonly playing = new Map<Piece<AudioBuffer>, AudioBufferSourceNode>();
  /** Recording time and the context's time that belong together. */
  private anchor: { at: number; time: number } | null = null;

  constructor() {
    const Context = window.AudioContext ?? (window as unknown as { webkitAudioContext: typeof AudioContext }).webkitAudioContext;
    this.context = new Context();
  }

  add(started: number, _ended: number, bytes: Uint8Array<ArrayBuffer>): boolean {
    if (!readMedia(bytes)) return false;
    this.context.decodeAudioData(rebased(bytes).buffer, (sound) => this.pieces.add(started, sound.duration * 1000, sound), () => undefined);
    return true;
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

  trim(): void {
    // What is kept is bounded by number.
  }
}

export class PlainPicture implements Output {
  readonly line = new Line();
  private readonly pieces = new Pieces<string>(this.line, (url) => URL.revokeObjectURL(url));
  private shown: Piece<string> | null = null;

  constructor(private readonly element: HTMLVideoElement) {}

  add(started: number, ended: number, bytes: Uint8Array<ArrayBuffer>): boolean {
    const media = readMedia(bytes);
    const length = media ? media.duration * 1000 : ended - started;
    this.pieces.add(started, length, URL.createObjectURL(new Blob([rebased(bytes)], { type: "video/mp4" })));
    return true;
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

  trim(): void {
    // What is kept is bounded by number.
  }
}
