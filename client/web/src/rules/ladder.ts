// When to try again. Pure: chance and time are arguments.

/** The first pause is any below this: contacts that a relay lost together do not come back together. */
const FIRST_MS = 500;
const STEPS_MS = [500, 1000, 2000, 4000];
/** A subscription that lasted this long was a good one. */
const STEADY_MS = 5000;

/** Delays before tries to connect: soon, then longer. People wait for it, so it never gets long. */
export class Ladder {
  private failures = 0;

  /** The pause before the next try, after a subscription of this life. `chance` is between 0 and 1. */
  next(livedMs: number, chance: number): number {
    if (livedMs > STEADY_MS) this.failures = 0;
    if (this.failures++ === 0) return FIRST_MS * chance;
    const step = STEPS_MS[Math.min(this.failures - 2, STEPS_MS.length - 1)] as number;
    return step * (0.75 + chance / 2);
  }
}

/** What a code of an ending, or of the core, asks for. */
export type After = "again" | "renew" | "over";

export function afterEnding(reason: string): After {
  switch (reason) {
    case "ended": return "over";
    // Whether this contact may go on is the core's to say: it gives a new capability, or says why not.
    case "capability_expired": case "capability_missing": case "capability_limit_exceeded": case "capability_revoked":
    case "capability_invalid": case "capability_wrong_use": case "capability_wrong_binding": case "not_watchable":
      return "renew";
    default: return "again";
  }
}
