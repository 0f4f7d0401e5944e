// Where a chunk goes whose recorded time can't be: by its place in its stream. A recorder's clock may be set back while it
// records, or be days ahead; what comes later was recorded later all the same. Pure; times in milliseconds.

/** A recorded stretch. */
export interface Stretch {
  started: number;
  ended: number;
}

/** How the recorder's clock was found to be wrong. */
export type Odd = "back" | "ahead";

/** What says that it was recorded so far in the future has a wrong clock. */
export const FUTURE_MS = 6 * 3600 * 1000;
/** Corrections remembered; the lanes of one phone share them, so that sound and picture stay in step. */
const MAX_SHIFTS = 64;

export class Order {
  private readonly shifts = [0];
  /** What was found so far. */
  odd: Odd | null = null;

  /**
   * What is to be added to the times that a chunk says. `before` and `after` are its neighbours, corrected already; `now` is a
   * time that this page can trust. A chunk begins when at least half of the one before it is over: how long it says that it is counts little.
   */
  shift(said: Stretch, before: Stretch | undefined, after: Stretch | undefined, now: number): number {
    const half = (said.ended - said.started) / 2;
    const fits = (shift: number): boolean => {
      const at = said.started + shift;
      return (!before || at >= before.started + (before.ended - before.started) / 2) && (!after || at + half <= after.started) && at <= now + FUTURE_MS;
    };
    const known = this.shifts.filter(fits);
    // A clock that was set right again needs no correction any more.
    if (known.length) return !before && known.includes(0) ? 0 : Math.min(...known);
    const made = before ? before.ended - said.started : after ? after.started - said.ended : now - said.ended;
    this.odd ??= said.started > now + FUTURE_MS ? "ahead" : "back";
    if (this.shifts.length < MAX_SHIFTS) this.shifts.push(made);
    return made;
  }
}
