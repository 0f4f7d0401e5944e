// What is said first: how the phone is, how the ways to it are. Pure; times in milliseconds of a clock that only goes on.

/** From so long without a sign on the page counts. */
const QUIET_MS = 5000;

/** A page that cannot go on, or has nothing to show. */
export type Screen =
  | "no_link" | "no_crypto" | "connecting" | "nothing_yet" | "expired" | "revoked" | "core_away" | "relay_away" | "over_empty"
  | "forgotten";

export type Phone = "unknown" | "live" | "quiet" | "silent" | "ended" | "cut";

export interface Facts {
  /** The page can't go on for this reason. */
  stopped?: "no_link" | "no_crypto" | "expired" | "revoked" | "forgotten";
  /** A subscription is open. */
  watching: boolean;
  /** It was open once. */
  watched: boolean;
  /** The core gave a capability at least once. */
  admitted: boolean;
  coreAway: boolean;
  relayAway: boolean;
  anyChunk: boolean;
  /** What the relay last said of the phone. */
  capture?: "silent" | "ended" | undefined;
  /** When the phone last gave a sign. */
  lastSign?: number | undefined;
}

export function phoneOf(facts: Facts, now: number): Phone {
  if (facts.relayAway && facts.capture !== "ended") return "cut";
  if (facts.capture) return facts.capture;
  if (facts.lastSign === undefined) return "unknown";
  return now - facts.lastSign >= QUIET_MS ? "quiet" : "live";
}

/** Seconds since the phone's last sign; `null` if none is known. */
export const heardAgo = (facts: Facts, now: number): number | null =>
  facts.lastSign === undefined ? null : Math.max(0, Math.floor((now - facts.lastSign) / 1000));

/** The screen that stands instead of picture and timeline; `null`: those are shown. */
export function screenOf(facts: Facts): Screen | null {
  if (facts.stopped && !(facts.anyChunk && (facts.stopped === "expired" || facts.stopped === "revoked"))) return facts.stopped;
  if (facts.anyChunk) return null;
  if (facts.coreAway && !facts.admitted) return "core_away";
  if (facts.relayAway) return "relay_away";
  if (!facts.watching) return facts.capture === "ended" ? "over_empty" : "connecting";
  return facts.capture === "ended" ? "over_empty" : "nothing_yet";
}

/** What stands above the picture beside the phone's state: the ways that are cut. */
export function troubleOf(facts: Facts): "expired" | "revoked" | "relay_away" | "core_away" | null {
  if (facts.stopped === "expired" || facts.stopped === "revoked") return facts.stopped;
  if (facts.capture === "ended" && !facts.watching) return facts.coreAway ? "core_away" : null;
  if (facts.relayAway) return "relay_away";
  return facts.coreAway ? "core_away" : null;
}
