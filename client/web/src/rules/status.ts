// What is said first: how the phone is, how the ways to it are. Pure; times in milliseconds of a clock that only goes on.

/** Nothing came for so long from a relay that says after 5 s that a phone is quiet: the connection is asked. */
const PROBE_MS = 6_000;
/** The same where the relay owes no word: the phone is known to be quiet, silent or done, or nothing came of it yet. */
const PROBE_QUIET_MS = 20_000;
/** Without an answer for so long the page no longer says that the phone is live. */
const UNSURE_MS = 2_500;
/** Without an answer for so long the connection is made again. */
const LOST_MS = 8_000;

/** A page that cannot go on, or has nothing to show. */
export type Screen =
  | "no_link" | "no_crypto" | "connecting" | "nothing_yet" | "expired" | "revoked" | "core_away" | "relay_away" | "over_empty"
  | "closed_empty" | "forgotten" | "no_worker";

export type Phone = "unknown" | "idle" | "live" | "quiet" | "silent" | "ended" | "cut" | "checking" | "closed" | "stopped";

export interface Facts {
  /** The page can't go on for this reason. */
  stopped?: "no_link" | "no_crypto" | "no_worker" | "expired" | "revoked" | "forgotten";
  /** A subscription is open. */
  watching: boolean;
  /** It was open once. */
  watched: boolean;
  /** The core gave a capability at least once. */
  admitted: boolean;
  coreAway: boolean;
  relayAway: boolean;
  anyChunk: boolean;
  /** The relay said that it has something of it: that is coming. */
  window?: boolean;
  /** The archive gives no more of it: the incident is closed there. */
  closed?: boolean;
  /** What the relay last said of the phone on this connection. */
  capture?: "silent" | "ended" | undefined;
  /** The relay said that the phone is quiet, and has not said yet that it is back. */
  quiet?: boolean;
  /** The connection does not answer: nothing is known of the phone. */
  checking?: boolean;
  /** The relay had the time to say that the phone is quiet, and did not: it may give signs of which nothing is shown here. */
  idle?: boolean;
  /** When the phone last gave a sign. */
  lastSign?: number | undefined;
}

export function phoneOf(facts: Facts): Phone {
  if (facts.capture === "ended") return "ended";
  if (facts.stopped) return "stopped";
  if (facts.closed) return "closed";
  if (facts.relayAway) return "cut";
  if (facts.capture) return facts.capture;
  if (facts.lastSign === undefined) return facts.checking ? "checking" : facts.idle ? "idle" : "unknown";
  // Whether a phone is quiet is the relay's word: a bad connection of one's own is none of the phone's.
  if (facts.quiet) return "quiet";
  return facts.checking ? "checking" : "live";
}

/** The relay says on each connection anew how the phone is: what the one before said is over. */
export const greeted = (facts: Facts): void => void Object.assign(facts, { quiet: false, checking: false, capture: undefined, lastSign: undefined, idle: false });

/** A relay says after 5 s that a phone is quiet; to whoever comes it says at once how the phone is, if it knows of a sign. */
export const IDLE_MS = 6_000;

/** What is to be done about a connection on which nothing came for `silentMs`, and was asked `probedMs` ago. */
export function doubt(facts: Facts, silentMs: number, probedMs: number | null): "none" | "probe" | "unsure" | "lost" {
  const owed = facts.lastSign !== undefined && !facts.quiet && !facts.capture;
  if (probedMs === null) return silentMs >= (owed ? PROBE_MS : PROBE_QUIET_MS) ? "probe" : "none";
  if (probedMs >= LOST_MS) return "lost";
  return probedMs >= UNSURE_MS ? "unsure" : "none";
}

/** Seconds since the phone's last sign; `null` if none is known. */
export const heardAgo = (facts: Facts, now: number): number | null =>
  facts.lastSign === undefined ? null : Math.max(0, Math.floor((now - facts.lastSign) / 1000));

/** The screen that stands instead of picture and timeline; `null`: those are shown. */
export function screenOf(facts: Facts): Screen | null {
  if (facts.stopped && !(facts.anyChunk && (facts.stopped === "expired" || facts.stopped === "revoked"))) return facts.stopped;
  if (facts.anyChunk || (facts.window && facts.watching)) return null;
  if (facts.closed) return "closed_empty";
  if (facts.coreAway && !facts.admitted) return "core_away";
  if (facts.relayAway) return "relay_away";
  if (!facts.watching) return facts.capture === "ended" ? "over_empty" : "connecting";
  return facts.capture === "ended" ? "over_empty" : "nothing_yet";
}

/** What stands above the picture beside the phone's state: the ways that are cut. */
export function troubleOf(facts: Facts): "expired" | "revoked" | "relay_away" | "core_away" | null {
  if (facts.stopped === "expired" || facts.stopped === "revoked") return facts.stopped;
  if ((facts.capture === "ended" || facts.closed) && !facts.watching) return facts.coreAway ? "core_away" : null;
  if (facts.relayAway) return "relay_away";
  return facts.coreAway ? "core_away" : null;
}
