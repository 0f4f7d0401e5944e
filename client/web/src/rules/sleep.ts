// Whether the device slept: the clock that only goes on stands still meanwhile in several browsers, that of the day does not. Pure.

/** Two clocks that are apart by more than this since the last look were apart for a reason. */
const APART_MS = 3000;

export class Sleep {
  private last: { steady: number; day: number } | null = null;

  /** Milliseconds that the steady clock did not count since the last look; 0: it counts. */
  slept(steady: number, day: number): number {
    const { last } = this;
    this.last = { steady, day };
    const missed = last ? day - last.day - (steady - last.steady) : 0;
    return missed > APART_MS ? missed : 0;
  }
}
