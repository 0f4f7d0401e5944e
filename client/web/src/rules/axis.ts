// Where marks lie on the timeline: in step with time, but a long pause takes little room. Pure.

import type { Chunk } from "./ledger";

/** Pauses longer than this are drawn this long. */
const PAUSE_MS = 6000;

interface Stretch {
  from: number;
  to: number;
  /** Where it begins on the line, in milliseconds without the pauses. */
  at: number;
}

/** Maps times to places on a line, both ways. */
export class Axis {
  private readonly stretches: Stretch[] = [];
  /** Length of the line, in milliseconds without the pauses. */
  readonly length: number;

  constructor(chunks: readonly Pick<Chunk, "started" | "ended">[]) {
    let at = 0;
    for (const { started, ended } of [...chunks].sort((a, b) => a.started - b.started)) {
      const last = this.stretches[this.stretches.length - 1];
      if (last && started <= last.to + PAUSE_MS) {
        last.to = Math.max(last.to, ended);
        continue;
      }
      if (last) at = last.at + last.to - last.from + PAUSE_MS;
      this.stretches.push({ from: started, to: ended, at });
    }
    const last = this.stretches[this.stretches.length - 1];
    this.length = last ? last.at + last.to - last.from : 0;
  }

  get start(): number {
    return this.stretches[0]?.from ?? 0;
  }

  get end(): number {
    return this.stretches[this.stretches.length - 1]?.to ?? 0;
  }

  place(time: number): number {
    let place = 0;
    for (const { from, to, at } of this.stretches) if (time >= from) place = at + Math.min(time, to) - from;
    return place;
  }

  time(place: number): number {
    let time = this.start;
    for (const { from, to, at } of this.stretches) if (place >= at) time = Math.min(from + place - at, to);
    return time;
  }
}
