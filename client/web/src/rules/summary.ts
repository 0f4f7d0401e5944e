// How safe it all is: counts, and how far it is safe. Pure.

import { type Chunk, type Mark, markOf } from "./ledger";

/** How the chunks of a lane, or of all, stand. */
export interface Summary {
  counts: Record<Mark, number>;
  /** End of the recorded stretch from the beginning on that is safe without a hole, if any. */
  safeUpTo?: number;
  /** Milliseconds before that which are not safe: never seen here, or refused. */
  holesMs: number;
  /** Milliseconds of recording that came here, or are coming, and are not known to be safe yet. */
  unsafeMs: number;
  /** Milliseconds of recording that were seen here and that the core will not have. */
  refusedMs: number;
  /** Something is safe, and nothing was seen here that is not. */
  allSafe: boolean;
  newest?: number;
}

export function summary(chunks: readonly Chunk[], lostUnsafe = false): Summary {
  const counts: Record<Mark, number> = { receiving: 0, unconfirmed: 0, confirmed: 0, rejected: 0, missing: 0 };
  const unsafe: [number, number][] = [];
  const refused: [number, number][] = [];
  const holes: [number, number][] = [];
  const out: Summary = { counts, unsafeMs: 0, refusedMs: 0, holesMs: 0, allSafe: !lostUnsafe };
  for (const chunk of chunks) {
    const mark = markOf(chunk);
    counts[mark]++;
    out.newest = Math.max(out.newest ?? chunk.ended, chunk.ended);
    if (mark === "confirmed") {
      out.safeUpTo = Math.max(out.safeUpTo ?? chunk.ended, chunk.ended);
      continue;
    }
    if (chunk.seen) out.allSafe = false;
    const stretch: [number, number] = [chunk.started, chunk.ended];
    const pending = mark === "unconfirmed" || mark === "receiving" || (mark === "missing" && chunk.seen);
    (pending ? unsafe : holes).push(stretch);
    if (mark === "rejected" && chunk.seen) refused.push(stretch);
  }
  // "Safe up to" ends where the first stretch begins that is not.
  for (const [start] of unsafe) if (out.safeUpTo !== undefined && start < out.safeUpTo) out.safeUpTo = start;
  out.unsafeMs = covered(unsafe);
  out.refusedMs = covered(refused);
  out.allSafe &&= out.safeUpTo !== undefined && !unsafe.length;
  const upTo = out.safeUpTo ?? -Infinity;
  out.holesMs = covered(holes.filter(([start]) => start < upTo).map(([start, end]) => [start, Math.min(end, upTo)]));
  return out;
}

/** Milliseconds that stretches cover together. */
export function covered(stretches: [number, number][]): number {
  let [sum, end] = [0, -Infinity];
  for (const [from, to] of [...stretches].sort((a, b) => a[0] - b[0])) {
    sum += Math.max(0, to - Math.max(from, end));
    end = Math.max(end, to);
  }
  return sum;
}
