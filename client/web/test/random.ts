// Seeded chance for property tests: a failing run names its seed.

export class Random {
  constructor(private state: number) {}

  /** In [0, 1). Mulberry32. */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  bytes(length: number): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length }, () => this.below(256));
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

/** Runs a property for many seeds. */
export function forAll(runs: number, property: (random: Random) => void): void {
  for (let seed = 1; seed <= runs; seed++) {
    try {
      property(new Random(seed));
    } catch (error) {
      (error as Error).message += ` (seed ${seed})`;
      throw error;
    }
  }
}
