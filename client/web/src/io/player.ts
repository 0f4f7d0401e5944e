// The conductor: one playhead for sound and picture. Sound leads while it is heard, and never waits for picture.

import type { Lane } from "../rules/assembly";
import { type Line, liveStart, step } from "../rules/place";
import { type Output, MseOutput, mediaSource, type Piece, type Shared } from "./lane";
import { PlainPicture, PlainSound } from "./plain";

const TICK_MS = 100;
/** A hole this short in the picture is not spoken of. */
const LINGER_MS = 400;

export interface Told {
  /** The playhead went over a stretch. */
  jumped(overMs: number, why: "gap" | "live"): void;
  /** Sound is not allowed without another tap. */
  silenced(): void;
  ticked(): void;
}

export class Player {
  readonly outputs: Record<Lane, Output>;
  /** The playhead; `null` before it began. */
  at: number | null = null;
  live = true;
  paused = false;
  heard = false;
  audioOnly = false;
  growing = true;
  /** Whether the last piece of a lane was one that this browser can play. */
  readonly playable: Record<Lane, boolean> = { audio: true, video: true };
  /** It waits for the next piece. */
  waiting = true;
  private rate = 1;
  /** What somebody went to is waited for until then. */
  private patientUntil = -Infinity;
  private ticked = 0;
  /** The newest piece of the lane that leads, and when it was first seen here. */
  private newest = { key: "", at: 0 };

  constructor(audio: HTMLAudioElement, video: HTMLVideoElement, private readonly told: Told) {
    const shared: Shared = { origin: null, moved: [] };
    this.outputs = mediaSource()
      ? { audio: new MseOutput(audio, shared), video: new MseOutput(video, shared) }
      : { audio: new PlainSound(), video: new PlainPicture(video) };
    for (const lane of ["audio", "video"] as const) this.outputs[lane].played = (can) => (this.playable[lane] = can);
    setInterval(() => this.tick(performance.now()), TICK_MS);
  }

  add(lane: Lane, piece: Piece): void {
    this.outputs[lane].add(piece);
  }

  /** In a tap: from now on it is heard. */
  async listen(): Promise<void> {
    this.heard = true;
    this.paused = false;
    try {
      await this.outputs.audio.unlock();
    } catch (error) {
      if ((error as Error).name !== "NotAllowedError") return;
      this.heard = false;
      this.told.silenced();
    }
  }

  /** Goes there. `patienceMs`: what lies there is on its way, and is not skipped meanwhile. */
  seek(at: number, patienceMs = 0): void {
    this.live = false;
    this.patientUntil = performance.now() + patienceMs;
    this.at = at;
    this.tick(performance.now());
  }

  /** To the newest whole chunk, or the beginning if nothing more comes. */
  begin(live: boolean): void {
    this.live = live;
    this.patientUntil = -Infinity;
    const starts = this.lines().map((line) => line.start).filter((start) => start !== Infinity);
    this.at = (live ? liveStart(this.lines()) : Math.min(...starts)) ?? this.at;
  }

  /** The lines that count, the leading one first. */
  lines(): Line[] {
    const { audio, video } = this.outputs;
    if (this.audioOnly) return [audio.line];
    return this.heard || !video.line.spans.length ? [audio.line, video.line] : [video.line, audio.line];
  }

  /** Whether there is a picture for the moment that plays; the last one stays while the next is awaited. */
  get pictured(): boolean {
    const { line } = this.outputs.video;
    return !this.audioOnly && (this.at === null || !!line.at(this.at) || !!line.at(this.at - LINGER_MS));
  }

  /** Something is seen or heard, or what comes next is. */
  get plays(): boolean {
    return this.at !== null && !this.paused && (!this.waiting || (this.live && this.growing));
  }

  private tick(now: number): void {
    const passed = Math.min(1000, now - this.ticked);
    this.ticked = now;
    if (this.at !== null) this.move(this.at, passed);
    this.told.ticked();
  }

  private move(before: number, passed: number): void {
    for (const output of Object.values(this.outputs)) output.near(before);
    if (this.paused) return this.hold();
    if (this.lines().some((line) => line.at(before))) this.patientUntil = -Infinity;
    else if (performance.now() < this.patientUntil) return this.hold();
    const leads = this.heard ? this.outputs.audio.clock() : null;
    let at = leads !== null && Math.abs(leads - before) < 1500 ? leads : before + (this.waiting ? 0 : passed * this.rate);
    const next = step({ at, lines: this.lines(), live: this.live, growing: this.growing, since: this.since() });
    if (next.what === "wait") {
      const end = Math.max(...this.lines().map((line) => line.end));
      // It stands at the end of what there is, not beyond.
      this.at = Number.isFinite(end) ? Math.min(at, Math.max(before, end)) : before;
      return this.hold();
    }
    this.waiting = false;
    if (next.what === "jump") {
      at = next.to;
      if (next.over > 1000) this.told.jumped(next.over, next.why);
    } else {
      this.rate = next.rate;
    }
    this.at = at;
    this.drive("audio", at, this.heard);
    this.drive("video", at, !this.audioOnly);
  }

  private since(): number {
    const key = this.lines().find((line) => line.spans.length)?.last?.key ?? "";
    const now = performance.now();
    if (key !== this.newest.key) this.newest = { key, at: now };
    return now - this.newest.at;
  }

  private drive(lane: Lane, at: number, wanted: boolean): void {
    const output = this.outputs[lane];
    if (wanted && output.line.at(at)) output.play(at, this.rate, lane === "audio");
    else output.pause();
  }

  private hold(): void {
    this.waiting = true;
    this.outputs.audio.pause();
    this.outputs.video.pause();
  }
}
