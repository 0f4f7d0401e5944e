// Every chunk this page knows of, and how it stands. Pure.
//
// A chunk is `confirmed` only by the core: a receipt that verifies, the core's own list, or, where the core signs nothing,
// the relay's word for the core's answer. What is confirmed stays so.

import type { Begins, Lane } from "./assembly";

export type Mark = "receiving" | "unconfirmed" | "confirmed" | "rejected" | "missing";
/** Why a chunk is taken for confirmed. */
export type Proof = "receipt" | "core" | "relay";

export interface Chunk {
  stream: string;
  index: number;
  lane: Lane;
  media: string;
  length: number;
  sha256: string;
  started: number;
  ended: number;
  /** Times are guessed from its neighbours: it was never announced. */
  guessed: boolean;
  /** Share of its bytes that is here, 0 to 1, while they arrive. */
  progress: number;
  /** All its bytes are here, are those of its digest and opened. */
  here: boolean;
  proof?: Proof;
  /** Why it is not here, or not safe. */
  why?: string;
  refused: boolean;
  gone: boolean;
  /** Where the core has it. */
  ref?: string;
  receipt?: string;
}

/** Chunks remembered; beyond, the oldest are forgotten. */
const MAX_CHUNKS = 20_000;
/** States of chunks that are not known yet. */
const MAX_EARLY = 2_000;
/** Most missing chunks that one announcement adds. */
const MAX_GAP = 2_000;

export const keyOf = (stream: string, index: number): string => `${stream}/${index}`;

export function markOf(chunk: Chunk): Mark {
  if (chunk.proof) return "confirmed";
  if (chunk.refused) return "rejected";
  if (chunk.here) return "unconfirmed";
  return chunk.gone ? "missing" : "receiving";
}

interface Early {
  proof?: { proof: Proof; receipt?: string | undefined };
  refused?: string;
}

export class Ledger {
  private readonly chunks = new Map<string, Chunk>();
  private readonly lanes = new Map<string, Lane>();
  private readonly highest = new Map<string, number>();
  private readonly early = new Map<string, Early>();
  private sorted: Chunk[] | null = null;
  /** Grows with every change. */
  version = 0;

  get(stream: string, index: number): Chunk | undefined {
    return this.chunks.get(keyOf(stream, index));
  }

  /** All, by time and lane. */
  all(): readonly Chunk[] {
    this.sorted ??= [...this.chunks.values()].sort((a, b) => a.started - b.started || (a.lane < b.lane ? -1 : 1));
    return this.sorted;
  }

  of(lane: Lane): Chunk[] {
    return this.all().filter((chunk) => chunk.lane === lane);
  }

  stream(stream: string, lane: Lane): void {
    this.lanes.set(stream, lane);
  }

  /** Whether the bytes of a chunk are still wanted. */
  wants(said: Begins): boolean {
    const chunk = this.get(said.stream, said.index);
    return !chunk?.here || chunk.sha256 !== said.sha256;
  }

  begins(said: Begins): void {
    const { stream, index, lane, media, length, sha256, started, ended } = said;
    const before = this.get(stream, index);
    this.stream(stream, lane);
    if (before && !before.guessed && before.sha256 === sha256) {
      // The same once more: after a new connection, or because it was asked for.
      if (!before.here) Object.assign(before, { gone: false, progress: 0, refused: false });
      if (!before.here) delete before.why;
      return this.changed();
    }
    const chunk: Chunk = {
      stream, index, lane, media, length, sha256, started, ended, guessed: false, progress: 0, here: false, refused: false,
      gone: false,
    };
    this.fillGap(chunk);
    this.put(chunk);
    this.comeEarly(chunk);
  }

  progress(stream: string, index: number, share: number): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.here) return;
    chunk.progress = share;
    this.version++;
  }

  /** Its bytes are here, are those of its digest, and opened. */
  opened(stream: string, index: number): void {
    const chunk = this.get(stream, index);
    if (!chunk) return;
    Object.assign(chunk, { here: true, progress: 1, gone: false });
    delete chunk.why;
    this.changed();
  }

  /** What came under its name is not this chunk. */
  bad(stream: string, index: number, why: string): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.here) return;
    Object.assign(chunk, { refused: why !== "torn", gone: true, progress: 0, why });
    this.changed();
  }

  withdrawn(stream: string, index: number, reason: string): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.here) return;
    Object.assign(chunk, { gone: true, progress: 0, why: reason });
    this.changed();
  }

  /** The connection is gone: what was arriving does not arrive. */
  disconnected(): void {
    for (const chunk of this.chunks.values()) if (!chunk.here && !chunk.gone) Object.assign(chunk, { gone: true, progress: 0, why: "cut" });
    this.changed();
  }

  confirmed(stream: string, index: number, proof: Proof, receipt?: string): void {
    const chunk = this.get(stream, index);
    if (!chunk) return this.remember(keyOf(stream, index), { proof: { proof, receipt } });
    if (!chunk.proof || proof !== "relay") chunk.proof = proof;
    if (receipt !== undefined) chunk.receipt = receipt;
    chunk.refused = false;
    this.changed();
  }

  /** The core refused it, or it will never come to the core. */
  rejected(stream: string, index: number, why: string): void {
    const chunk = this.get(stream, index);
    if (!chunk) return this.remember(keyOf(stream, index), { refused: why });
    if (chunk.proof) return;
    Object.assign(chunk, { refused: true, why });
    this.changed();
  }

  /** The relay left these out. */
  omitted(stream: string, from: number, to: number, reason: string): void {
    const lane = this.lanes.get(stream);
    if (!lane) return;
    for (let index = Math.max(from, to - MAX_GAP); index <= to; index++) {
      const chunk = this.get(stream, index);
      if (chunk?.here) continue;
      if (chunk) Object.assign(chunk, { gone: true, progress: 0, why: reason });
      else this.putMissing(stream, index, lane, reason);
    }
    this.changed();
  }

  /** The core's own list says that it has this chunk. */
  coreHas(item: Omit<Begins, "state" | "replay">, ref: string, receipt?: string): void {
    const known = this.get(item.stream, item.index);
    const other = known && !known.guessed && known.sha256 !== item.sha256;
    if (!known || known.guessed || other) {
      const { stream, index, lane, media, length, sha256, started, ended } = item;
      this.stream(stream, lane);
      this.put({
        stream, index, lane, media, length, sha256, started, ended, guessed: false, progress: 0, here: false, refused: false,
        gone: true, why: known?.why ?? "evicted",
      });
    }
    const chunk = this.get(item.stream, item.index) as Chunk;
    chunk.ref = ref;
    this.confirmed(item.stream, item.index, "core", receipt);
  }

  private comeEarly(chunk: Chunk): void {
    const key = keyOf(chunk.stream, chunk.index);
    const early = this.early.get(key);
    this.early.delete(key);
    if (early?.proof) this.confirmed(chunk.stream, chunk.index, early.proof.proof, early.proof.receipt);
    else if (early?.refused) this.rejected(chunk.stream, chunk.index, early.refused);
  }

  private remember(key: string, news: Early): void {
    this.early.set(key, { ...this.early.get(key), ...news });
    if (this.early.size > MAX_EARLY) this.early.delete(this.early.keys().next().value as string);
  }

  /** A lane that is switched on again goes on later: what lies between was never announced. */
  private fillGap(chunk: Chunk): void {
    const highest = this.highest.get(chunk.stream);
    if (highest === undefined) return;
    for (let index = Math.max(highest + 1, chunk.index - MAX_GAP); index < chunk.index; index++) {
      this.putMissing(chunk.stream, index, chunk.lane, "not_asked", chunk);
    }
  }

  private putMissing(stream: string, index: number, lane: Lane, why: string, near = this.nearest(stream, index)): void {
    const length = near ? near.ended - near.started : 0;
    const started = near ? near.started + (index - near.index) * length : NaN;
    // Without a neighbour there is no place for it; it is counted when one is known.
    if (!near) return;
    this.put({
      stream, index, lane, media: near.media, length: 0, sha256: "", started, ended: started + length, guessed: true,
      progress: 0, here: false, refused: false, gone: true, why,
    });
    this.comeEarly(this.get(stream, index) as Chunk);
  }

  private nearest(stream: string, index: number): Chunk | undefined {
    let best: Chunk | undefined;
    for (const chunk of this.chunks.values()) {
      if (chunk.stream !== stream || chunk.guessed) continue;
      if (!best || Math.abs(chunk.index - index) < Math.abs(best.index - index)) best = chunk;
    }
    return best;
  }

  private put(chunk: Chunk): void {
    this.chunks.set(keyOf(chunk.stream, chunk.index), chunk);
    this.highest.set(chunk.stream, Math.max(chunk.index, this.highest.get(chunk.stream) ?? 0));
    if (this.chunks.size > MAX_CHUNKS) {
      const oldest = this.all()[0] as Chunk;
      this.chunks.delete(keyOf(oldest.stream, oldest.index));
    }
    this.changed();
  }

  private changed(): void {
    this.sorted = null;
    this.version++;
  }
}

/** How the chunks of a lane, or of all, stand. */
export interface Summary {
  counts: Record<Mark, number>;
  /** End of the recorded stretch from the beginning on that is safe without a hole, if any. */
  safeUpTo?: number;
  /** Milliseconds before that which are not safe: never seen here, or refused. */
  holesMs: number;
  /** Milliseconds of recording that were seen here and are not known to be safe. */
  unsafeMs: number;
  newest?: number;
}

export function summary(chunks: readonly Chunk[]): Summary {
  const counts: Record<Mark, number> = { receiving: 0, unconfirmed: 0, confirmed: 0, rejected: 0, missing: 0 };
  const unsafe: [number, number][] = [];
  const holes: [number, number][] = [];
  const out: Summary = { counts, unsafeMs: 0, holesMs: 0 };
  for (const chunk of chunks) {
    const mark = markOf(chunk);
    counts[mark]++;
    out.newest = Math.max(out.newest ?? chunk.ended, chunk.ended);
    if (mark === "confirmed") out.safeUpTo = Math.max(out.safeUpTo ?? chunk.ended, chunk.ended);
    else (mark === "unconfirmed" || mark === "receiving" ? unsafe : holes).push([chunk.started, chunk.ended]);
  }
  // "Safe up to" ends where the first stretch begins that is not.
  for (const [start] of unsafe) if (out.safeUpTo !== undefined && start < out.safeUpTo) out.safeUpTo = start;
  out.unsafeMs = covered(unsafe);
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
