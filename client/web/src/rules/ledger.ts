// Every chunk this page knows of, and how it stands. Pure.
//
// A chunk is `confirmed` only by the core, and with the digest that the core has: a receipt that verifies, or, where the core
// signs nothing, the core's own list or the relay's word for the core's answer. What is confirmed stays so.
// Whatever a relay says costs a bounded time and room.

import type { Begins, Lane } from "./assembly";
import { type Odd, Order } from "./order";

export type Mark = "receiving" | "unconfirmed" | "confirmed" | "rejected" | "missing";
/** Why a chunk is taken for confirmed. */
export type Proof = "receipt" | "core" | "relay";

/** `started` and `ended` are where it goes in the recording's order. */
export interface Chunk extends Item {
  /** What was added to the times that the phone says, where those can't be. */
  shift: number;
  /** Whose word its times are: they are guessed from its neighbours if it was never announced. */
  times: "core" | "relay" | "guessed";
  /** Share of its bytes that is here, 0 to 1, while they arrive. */
  progress: number;
  /** All its bytes are here, are those of its digest and opened. */
  here: boolean;
  /** They were here once; they may have been freed since. */
  seen: boolean;
  proof?: Proof;
  /** Why it is not here, or not safe. */
  why?: string;
  refused: boolean;
  /** The bytes of its digest were here, and are not what the phone sealed: wherever they are stored, they are no recording. */
  spoiled: boolean;
  gone: boolean;
  /** Where the core has it. */
  ref?: string;
  receipt?: string;
}

/** A chunk as the core lists it. */
export type Item = Omit<Begins, "state" | "replay">;

/** Chunks remembered; beyond, those known longest are forgotten. */
const MAX_CHUNKS = 20_000;
/** States of chunks that are not known yet. */
const MAX_EARLY = 2_000;
/** Most missing chunks that one announcement adds, and how far from what was really there. */
const MAX_GAP = 600;
/** Most chunks that are known only as missing. */
const MAX_GUESSED = 8_000;
const MAX_STREAMS = 1_024;
/** Times that a date can hold. */
const MAX_TIME = 8.64e15;
/** How far a chunk's neighbours are looked for. */
const MAX_LOOK = 64;
/** A stream of which nothing new came for so long, while it came of another, is over. */
const OVER_MS = 10_000;

export const keyOf = (stream: string, index: number): string => `${stream}/${index}`;

export function markOf(chunk: Chunk): Mark {
  if (chunk.spoiled) return "rejected";
  if (chunk.proof) return "confirmed";
  if (chunk.refused) return "rejected";
  if (chunk.here) return "unconfirmed";
  return chunk.gone ? "missing" : "receiving";
}

interface Early {
  proof?: { proof: Proof; sha256: string; receipt?: string | undefined };
  refused?: string;
}

interface Stream {
  lane: Lane;
  highest: number;
  /** The stream that it goes on from. */
  follows?: string;
  /** When something new last came of it. */
  liveAt: number;
  /** The newest chunk that was really announced. */
  newest?: Chunk;
}

export class Ledger {
  private readonly chunks = new Map<string, Chunk>();
  private readonly streams = new Map<string, Stream>();
  private readonly early = new Map<string, Early>();
  private sorted: Chunk[] | null = null;
  private guessed = 0;
  private readonly order = new Order();
  private readonly fronts: Partial<Record<Lane, Chunk>> = {};
  /** Grows with every change but progress. */
  version = 0;
  /** Chunks whose progress changed since this was emptied. */
  readonly moving = new Set<Chunk>();
  /** Something was forgotten that was seen here and never called safe. */
  lostUnsafe = false;

  /** `now`: a time that can be trusted. */
  constructor(private readonly now: () => number = Date.now) {}

  /** How the phone's clock is wrong, as far as one knows. */
  get odd(): Odd | null {
    return this.order.odd;
  }

  /**
   * Whether one chunk of a lane was recorded after another: by order, not by what clocks say. Of two streams the one that goes on
   * is later; while both do, one of them brings what it kept from before.
   */
  later(chunk: Chunk, than: Chunk): boolean {
    if (chunk.stream === than.stream) return chunk.index > than.index;
    const [one, other] = [chunk, than].map(({ stream }) => this.streams.get(stream)?.liveAt ?? -Infinity) as [number, number];
    return Math.abs(one - other) > OVER_MS ? one > other : chunk.started > than.started;
  }

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

  /** Notes a stream; false: there are too many. */
  stream(stream: string, lane: Lane, follows?: string): boolean {
    const known = this.streams.get(stream);
    if (!known && this.streams.size >= MAX_STREAMS) return false;
    const noted: Stream = known ?? { lane, highest: 0, liveAt: -Infinity };
    noted.lane = lane;
    if (follows !== undefined) noted.follows = follows;
    this.streams.set(stream, noted);
    return true;
  }

  /** Whether the bytes of a chunk are still wanted. */
  wants(said: Begins): boolean {
    const chunk = this.get(said.stream, said.index);
    return !chunk || (chunk.sha256 === said.sha256 ? !chunk.here && !chunk.spoiled : !chunk.proof);
  }

  /** `at`: now, of a clock that only goes on. */
  begins(said: Begins, at = 0): void {
    const before = this.get(said.stream, said.index);
    if (!this.stream(said.stream, said.lane)) return;
    if (!said.replay) (this.streams.get(said.stream) as Stream).liveAt = at;
    if (before && before.sha256 === said.sha256) {
      // The same once more: after a new connection, or because it was asked for.
      if (!before.here) Object.assign(before, { gone: false, progress: 0, refused: false });
      if (!before.here) delete before.why;
      return this.changed();
    }
    // What is safe is not replaced by anything else, whoever says so.
    if (before?.proof) return;
    const chunk = announced(said, "relay", this.shift(said));
    this.fillGap(chunk);
    this.put(chunk);
    this.comeEarly(chunk);
  }

  progress(stream: string, index: number, share: number): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.here) return;
    chunk.progress = share;
    this.moving.add(chunk);
  }

  /** Its bytes are here, are those of its digest, and opened. */
  opened(stream: string, index: number): void {
    const chunk = this.get(stream, index);
    if (!chunk) return;
    Object.assign(chunk, { here: true, seen: true, progress: 1, gone: false, spoiled: false });
    delete chunk.why;
    this.changed();
  }

  /** Its opened bytes were freed to make room. */
  freed(stream: string, index: number): void {
    const chunk = this.get(stream, index);
    if (!chunk?.here) return;
    Object.assign(chunk, { here: false, gone: true, progress: 0, why: "freed" });
    this.changed();
  }

  /** What came under its name is not this chunk. */
  bad(stream: string, index: number, why: string): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.here) return;
    Object.assign(chunk, { refused: why !== "torn", spoiled: why === "sealed", gone: true, progress: 0, why });
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

  /** The core has the chunk with these bytes; what is said of others is not said of it. */
  confirmed(stream: string, index: number, proof: Proof, sha256: string, receipt?: string): void {
    const chunk = this.get(stream, index);
    if (!chunk || chunk.times === "guessed") return this.remember(keyOf(stream, index), { proof: { proof, sha256, receipt } });
    if (chunk.sha256 !== sha256) return;
    if (!chunk.proof || rank[proof] > rank[chunk.proof]) chunk.proof = proof;
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
    const known = this.streams.get(stream);
    if (!known) return;
    const near = this.near(known, stream, from, to);
    // Without a neighbour there is no place for them on the line. One is enough for all, and what is far from it is made up.
    if (!near) return;
    const last = Math.min(to, Math.max(near.index, known.highest) + MAX_GAP);
    for (let index = Math.max(from, last - MAX_GAP); index <= last; index++) {
      const chunk = this.get(stream, index);
      if (chunk?.here) continue;
      if (chunk) Object.assign(chunk, { gone: true, progress: 0, why: chunk.seen ? chunk.why : reason });
      else if (!this.putMissing(index, reason, near)) break;
    }
    this.changed();
  }

  /** The core's own list has this chunk. `proof`: what that proves, if anything. */
  coreHas(item: Item, ref: string, proof?: Proof, receipt?: string): void {
    if (!this.stream(item.stream, item.lane)) return;
    let chunk = this.get(item.stream, item.index);
    if (chunk && chunk.times !== "guessed" && chunk.sha256 !== item.sha256) {
      if (!proof || (chunk.proof && rank[chunk.proof] >= rank[proof])) return;
      chunk = undefined;
    }
    if (!chunk || chunk.times === "guessed") {
      this.put({ ...announced(item, "core", this.shift(item)), gone: true, why: chunk?.why ?? "evicted" });
      chunk = this.get(item.stream, item.index) as Chunk;
    } else if (chunk.times === "relay") {
      // Until now its times were the relay's word.
      const shift = this.shift(item);
      Object.assign(chunk, { times: "core", shift, started: item.started + shift, ended: item.ended + shift });
      this.sorted = null;
    }
    chunk.ref = ref;
    if (proof) this.confirmed(item.stream, item.index, proof, item.sha256, receipt);
    this.changed();
  }

  private comeEarly(chunk: Chunk): void {
    const key = keyOf(chunk.stream, chunk.index);
    const early = this.early.get(key);
    if (!early) return;
    if (early.proof && chunk.times === "guessed") return;
    this.early.delete(key);
    if (early.proof) this.confirmed(chunk.stream, chunk.index, early.proof.proof, early.proof.sha256, early.proof.receipt);
    if (early.refused !== undefined) this.rejected(chunk.stream, chunk.index, early.refused);
  }

  private remember(key: string, news: Early): void {
    this.early.set(key, { ...this.early.get(key), ...news });
    if (this.early.size > MAX_EARLY) this.early.delete(this.early.keys().next().value as string);
  }

  /** A lane that is switched on again goes on later: what lies between was never announced. */
  private fillGap(chunk: Chunk): void {
    const highest = this.streams.get(chunk.stream)?.highest;
    if (!highest) return;
    for (let index = Math.max(highest + 1, chunk.index - MAX_GAP); index < chunk.index; index++) {
      if (!this.putMissing(index, "not_asked", chunk)) break;
    }
  }

  /** A chunk beside these that has a place; false: none more are taken. */
  private putMissing(index: number, why: string, near: Chunk): boolean {
    if (this.guessed >= MAX_GUESSED) return false;
    const { stream, lane, media } = near;
    const length = near.ended - near.started;
    const started = near.started + (index - near.index) * length;
    if (!(Math.abs(started) + length < MAX_TIME)) return false;
    const item = { stream, index, lane, media, length: 0, sha256: "", started, ended: started + length };
    this.put({ ...announced(item, "guessed"), shift: near.shift, gone: true, why });
    this.comeEarly(this.get(stream, index) as Chunk);
    return true;
  }

  private near(known: Stream, stream: string, from: number, to: number): Chunk | undefined {
    const beside = [this.get(stream, from - 1), this.get(stream, to + 1)];
    return beside.find((chunk) => chunk && chunk.times !== "guessed") ?? known.newest;
  }

  private put(chunk: Chunk): void {
    const key = keyOf(chunk.stream, chunk.index);
    const stream = this.streams.get(chunk.stream) as Stream;
    this.forget(key);
    this.chunks.set(key, chunk);
    stream.highest = Math.max(chunk.index, stream.highest);
    if (chunk.times === "guessed") this.guessed++;
    else this.front(chunk, stream);
    if (this.chunks.size > MAX_CHUNKS) this.forget(this.chunks.keys().next().value as string);
    this.sorted = null;
    this.changed();
  }

  private front(chunk: Chunk, stream: Stream): void {
    if (!stream.newest || stream.newest.index <= chunk.index) stream.newest = chunk;
    const front = this.fronts[chunk.lane];
    if (!front || this.later(chunk, front)) this.fronts[chunk.lane] = chunk;
  }

  /** What the first chunk of a stream goes after, if its time can't be: a phone records one thing at a time. */
  private ended({ lane, stream, started, ended }: Item, follows: string | undefined): Chunk | undefined {
    const half = (ended - started) / 2;
    const taken = this.all().some((one) => one.lane === lane && one.stream !== stream && one.times !== "guessed" && one.started < ended - half && one.ended > started + half);
    return taken ? this.streams.get(follows ?? "")?.newest ?? this.fronts[lane] : undefined;
  }

  /** What is to be added to the times of a chunk. */
  private shift(item: Item): number {
    const { newest, follows } = this.streams.get(item.stream) as Stream;
    const look = (by: number): Chunk | undefined => {
      for (let n = 1; n <= MAX_LOOK; n++) {
        const chunk = this.get(item.stream, item.index + n * by);
        if (chunk && chunk.times !== "guessed") return chunk;
      }
      return undefined;
    };
    const beyond = newest !== undefined && newest.index > item.index;
    const before = newest ? (newest.index < item.index ? newest : look(-1)) : this.ended(item, follows);
    return this.order.shift(item, before, beyond ? look(1) : undefined, this.now());
  }

  private forget(key: string): void {
    const chunk = this.chunks.get(key);
    if (!chunk) return;
    if (chunk.times === "guessed") this.guessed--;
    if (chunk.seen && !chunk.proof) this.lostUnsafe = true;
    this.chunks.delete(key);
    this.moving.delete(chunk);
  }

  private changed(): void {
    this.version++;
  }
}

/** How much a proof is worth. */
const rank: Record<Proof, number> = { relay: 1, core: 2, receipt: 3 };

function announced(item: Item, times: Chunk["times"], shift = 0): Chunk {
  const { stream, index, lane, media, length, sha256 } = item;
  const [started, ended] = [item.started + shift, item.ended + shift];
  return { stream, index, lane, media, length, sha256, started, ended, shift, times, progress: 0, here: false, seen: false, refused: false, spoiled: false, gone: false };
}
