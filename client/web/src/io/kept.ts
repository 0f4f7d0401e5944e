// Plaintexts that are kept to be played again and saved. Bounded: the oldest pictures go first, then the oldest sound.

import type { Lane } from "../rules/assembly";
import { keyOf } from "../rules/ledger";

const MAX_BYTES = 96 * 1024 * 1024;

interface Kept {
  stream: string;
  index: number;
  lane: Lane;
  bytes: Uint8Array<ArrayBuffer>;
}

export class Shelf {
  private readonly kept = new Map<string, Kept>();
  private size = 0;

  /** `freed` hears of what had to go. */
  constructor(private readonly freed: (stream: string, index: number) => void, private readonly most = MAX_BYTES) {}

  put(stream: string, index: number, lane: Lane, bytes: Uint8Array<ArrayBuffer>): void {
    this.take(keyOf(stream, index));
    this.kept.set(keyOf(stream, index), { stream, index, lane, bytes });
    this.size += bytes.length;
    while (this.size > this.most) {
      const gone = this.take(this.oldest());
      if (gone) this.freed(gone.stream, gone.index);
    }
  }

  get(stream: string, index: number): Uint8Array<ArrayBuffer> | undefined {
    return this.kept.get(keyOf(stream, index))?.bytes;
  }

  private oldest(): string {
    for (const [key, { lane }] of this.kept) if (lane === "video") return key;
    return this.kept.keys().next().value as string;
  }

  private take(key: string): Kept | undefined {
    const kept = this.kept.get(key);
    this.size -= kept?.bytes.length ?? 0;
    this.kept.delete(key);
    return kept;
  }
}
