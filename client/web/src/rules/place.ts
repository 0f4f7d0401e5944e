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
/** How far behind the newest whole chunk's end the playhead aims, in chunks. */
const AIM = 1.25;
const MOST = 2.2;

export interface Playing {
  /** The playhead. */
  at: number;
  /** The lanes that count: what is heard first, then what is seen. */
  lines: Line[];
  /** It follows the recording. */
  live: boolean;
  /** The phone still sends, as far as one knows. */
  growing: boolean;
}

export type Step =
  | { what: "go"; rate: number }
  | { what: "wait" }
  | { what: "jump"; to: number; over: number; why: "gap" | "live" };

/** What the playhead does next. */
export function step({ at, lines, live, growing }: Playing): Step {
  const here = lines.some((line) => line.at(at));
  const main = lines.find((line) => line.spans.length);
  const last = main?.last;
  if (!last) return { what: "wait" };
  const following = live && growing;
  const edge = Math.max(...lines.map((line) => line.last?.end ?? -Infinity));
  if (following) {
    const chunk = last.end - last.start;
    const lag = last.end - at;
    const aim = last.end - AIM * chunk;
    // Beyond all that is new lies what a wrong clock put there.
    if (lag > MOST * chunk + 300 || at > edge + chunk + 1000) {
      // There may be a hole where it aims.
      const to = Math.max(aim, main.at(aim)?.start ?? main.after(aim)?.start ?? last.start);
      return { what: "jump", to, over: to - at, why: "live" };
    }
    if (here) return { what: "go", rate: lag > 1.7 * chunk ? 1.06 : 1 };
  } else if (here) {
    return { what: "go", rate: 1 };
  }
  const next = Math.min(...lines.map((line) => line.after(at)?.start ?? Infinity));
  if (next === Infinity || (following && next >= edge)) return { what: "wait" };
  return next - at <= HOLE_MS ? { what: "jump", to: next, over: 0, why: "gap" } : { what: "jump", to: next, over: next - at, why: "gap" };
}

/** Where following the recording begins. */
export function liveStart(lines: Line[]): number | null {
  const main = lines.find((line) => line.spans.length);
  const last = main?.last;
  return last ? Math.max(main.start, last.end - AIM * (last.end - last.start)) : null;
}
