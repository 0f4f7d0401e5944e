// How often the core's own list is looked at. Pure; times in milliseconds.

import { type Chunk, markOf } from "./ledger";

/** What was seen here and is not confirmed for so long is looked for in the core's own list. */
const LATE_MS = 12_000;
export const LIST_PAUSE_MS = 15_000;
/** The same for what is not here at all: it may never come. */
const RARE_PAUSE_MS = 60_000;

/** It is looked at first when no bytes came for so long, and at the latest after */
const FIRST_AFTER_MS = 1_000;
const FIRST_MOST_MS = 8_000;

/** Nothing comes: the core's list, which is long, delays nobody any more. */
export const settled = (now: number, mediaAt: number, watchingAt: number | null): boolean =>
  now - mediaAt > FIRST_AFTER_MS || (watchingAt !== null && now - watchingAt > FIRST_MOST_MS);

/** The pause, by whether something should be safe by now, as far as one can tell. `over`: the phone sends nothing more. */
export function listPause(chunks: readonly Chunk[], doubts: number, over: boolean): number {
  if (doubts > 0) return LIST_PAUSE_MS;
  const newest = chunks.reduce((end, chunk) => Math.max(end, chunk.ended), -Infinity);
  const late = over ? Infinity : newest - LATE_MS;
  const marks = new Set(chunks.filter((chunk) => chunk.ended < late).map(markOf));
  return marks.has("unconfirmed") ? LIST_PAUSE_MS : marks.has("missing") ? RARE_PAUSE_MS : Infinity;
}
