// What happened while the page was away. Pure.

import type { Chunk } from "./ledger";
import { covered } from "./summary";

export interface Missed {
  /** Milliseconds of recording that came meanwhile and are here now. */
  caughtUpMs: number;
  /** Milliseconds of recording that came meanwhile and are not here. */
  missingMs: number;
}

/** Compares what was known before (`seen`: newest end) with what is known now, of one lane. */
export function missed(chunks: readonly Chunk[], seenUpTo: number): Missed {
  const later = chunks.filter((chunk) => chunk.ended > seenUpTo);
  const stretch = (list: Chunk[]): [number, number][] => list.map((chunk) => [Math.max(chunk.started, seenUpTo), chunk.ended]);
  const here = covered(stretch(later.filter((chunk) => chunk.here)));
  return { caughtUpMs: here, missingMs: covered(stretch(later.filter((chunk) => chunk.here || chunk.gone))) - here };
}

/** What came, or was on its way, and is not here because the way to this page was cut. */
export const cutOff = (chunks: readonly Chunk[]): Chunk[] =>
  chunks.filter(({ here, gone, why, lane }) => !here && gone && (why === "cut" || why === "busy" || (why === "not_asked" && lane === "audio")));
