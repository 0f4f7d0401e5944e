// Where the chunks of a lane lie on the player's line, and where the playhead goes. Pure; times in milliseconds.

/** A chunk begins where the one before it ends, if its time says nearly that. Encoders cut at whole frames. */
const SNAP_MS = 80;

export interface Span {
  start: number;
  end: number;
}

/** A chunk on the line. */
export interface Laid extends Span {
  key: string;
}

/** Room for less than this is none. */
const LEAST_MS = 20;
/** A browser's buffer may begin so much later and end so much earlier than what was put there. */
const LOOSE_MS = 400;

/** What lies on a lane's line, in order, without overlaps. */
export class Line {
  spans: Laid[] = [];
  private newest = "";

  /** Where a chunk of this length goes that says it began at `started`, and where it must end at the latest; `null`: there is no room. Never over another one. */
  place(started: number, length: number, key: string): (Laid & { limit: number }) | null {
    const others = this.spans.filter((span) => span.key !== key);
    const before = others.filter((span) => span.start < started + SNAP_MS).pop();
    const start = before && Math.abs(before.end - started) <= SNAP_MS ? before.end : Math.max(started, before?.end ?? started);
    const after = others.find((span) => span.start > start - LEAST_MS);
    const limit = after && after.start < start + length ? after.start : Infinity;
    return limit - start < LEAST_MS ? null : { start, end: Math.min(start + length, limit), limit, key };
  }

  /** `newest`: it is the last one of the recording so far, whatever its time is. */
  add({ start, end, key }: Laid, newest = false): void {
    this.spans = [...this.spans.filter((other) => other.key !== key), { start, end, key }].sort((a, b) => a.start - b.start);
    if (newest) this.newest = key;
  }

  /** Forgets what lies within. */
  cut({ start, end }: Span): void {
    this.spans = this.spans.filter((span) => span.end <= start || span.start >= end);
  }

  drop(key: string): void {
    this.spans = this.spans.filter((span) => span.key !== key);
  }

  /** The browser has these stretches and no others: what it freed by itself is not here any more. */
  keep(there: readonly Span[]): void {
    this.spans = this.spans.flatMap((span) => {
      const parts = there.map(({ start, end }) => ({ start: Math.max(start, span.start), end: Math.min(end, span.end) })).filter(({ start, end }) => end - start > LEAST_MS);
      const [first, last] = [parts[0], parts[parts.length - 1]];
      if (!first || !last) return [];
      const start = first.start - span.start > LOOSE_MS ? first.start : span.start;
      const end = span.end - last.end > LOOSE_MS ? last.end : span.end;
      // Of what has a hole in it the part before the hole counts.
      const hole = parts.find((part, i) => (parts[i + 1]?.start ?? part.end) - part.end > LOOSE_MS);
      return [{ start, end: hole ? hole.end : end, key: span.key }];
    });
  }

  at(time: number): Laid | undefined {
    return this.spans.find((span) => span.start <= time && time < span.end);
  }

  after(time: number): Laid | undefined {
    return this.spans.find((span) => span.start > time);
  }

  get end(): number {
    return this.spans.length ? (this.spans[this.spans.length - 1] as Span).end : -Infinity;
  }

  get start(): number {
    return this.spans[0]?.start ?? Infinity;
  }

  /** The newest: the one that came last in the recording's order, else the last by time. */
  get last(): Laid | undefined {
    return this.spans.find((span) => span.key === this.newest) ?? this.spans[this.spans.length - 1];
  }
}

/** What lies so near to the playhead stays. */
const NEAR_MS = 10_000;

/** What may go to make room: half of what lies on the side that reaches further from the playhead; `null`: nothing. */
export function farthest(line: Line, at: number): Span | null {
  const [behind, ahead] = [at - NEAR_MS - line.start, line.end - at - NEAR_MS];
  if (Math.max(behind, ahead) <= 0) return null;
  return behind >= ahead ? { start: line.start, end: line.start + Math.max(behind / 2, Math.min(behind, NEAR_MS)) } : { start: line.end - Math.max(ahead / 2, Math.min(ahead, NEAR_MS)), end: line.end };
}

/** Holes up to this long are played over without a word. */
const HOLE_MS = 120;
/**
 * How far behind the newest whole chunk's end the playhead is, in chunks. The next chunk comes a chunk's length after it, so whoever
 * is never to wait is at least one behind when it has just come; and at most two, in the chunk before it. Between those is the aim.
 */
const LEAST = 1;
const AIM = 1.5;
const MOST = 2;
/** Nearer than this it plays more slowly, so that a late chunk is not waited for; further away faster. The pitch stays. */
const SLOW = { below: 1.35, rate: 0.95 };
const FAST = { above: 1.75, rate: 1.06 };
/** Encoders cut at whole frames, and the playhead is moved now and then: what is so little too far is not jumped. */
const SLACK_MS = 100;

export interface Playing {
  /** The playhead. */
  at: number;
  /** The lanes that count: what is heard first, then what is seen. */
  lines: Line[];
  /** It follows the recording. */
  live: boolean;
  /** The phone still sends, as far as one knows. */
  growing: boolean;
  /** How long ago the newest chunk came. */
  since: number;
}

export type Step =
  | { what: "go"; rate: number }
  | { what: "wait" }
  | { what: "jump"; to: number; over: number; why: "gap" | "live" };

/** What the playhead does next. */
export function step({ at, lines, live, growing, since }: Playing): Step {
  const here = lines.some((line) => line.at(at));
  const main = lines.find((line) => line.spans.length);
  const last = main?.last;
  if (!last) return { what: "wait" };
  const following = live && growing;
  const edge = Math.max(...lines.map((line) => line.last?.end ?? -Infinity));
  if (following) {
    const chunk = lengthOf(main, last);
    const lag = last.end - at;
    // What has passed since the newest chunk came is what is left of its length.
    const waited = Math.min(since, chunk);
    // Beyond all that is new lies what a wrong clock put there.
    if (lag > MOST * chunk + SLACK_MS || at > edge + chunk + 1000) {
      const aim = last.end - (AIM * chunk - waited);
      // There may be a hole where it aims.
      const to = Math.max(aim, main.at(aim)?.start ?? main.after(aim)?.start ?? last.start);
      return { what: "jump", to, over: to - at, why: "live" };
    }
    if (here) return { what: "go", rate: rateAt((lag + waited) / chunk) };
  } else if (here) {
    return { what: "go", rate: 1 };
  }
  const next = Math.min(...lines.map((line) => line.after(at)?.start ?? Infinity));
  if (next === Infinity || (following && next >= edge)) return { what: "wait" };
  return next - at <= HOLE_MS ? { what: "jump", to: next, over: 0, why: "gap" } : { what: "jump", to: next, over: next - at, why: "gap" };
}

const rateAt = (behind: number): number => (behind > FAST.above ? FAST.rate : behind < SLOW.below ? SLOW.rate : 1);

/** How long a chunk is: the last one of a recording is cut short. */
function lengthOf(line: Line, last: Laid): number {
  const before = line.spans[line.spans.indexOf(last) - 1];
  return Math.max(last.end - last.start, before ? before.end - before.start : 0);
}

/** Where following the recording begins: when the next chunk comes is not known, and then it is not to be too far. */
export function liveStart(lines: Line[]): number | null {
  const main = lines.find((line) => line.spans.length);
  const last = main?.last;
  return last ? Math.max(main.start, last.end - LEAST * lengthOf(main, last)) : null;
}
