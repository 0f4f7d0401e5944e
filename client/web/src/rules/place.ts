// Where the chunks of a lane lie on the player's line, and where the playhead goes. Pure; times in milliseconds.

/** A chunk begins where the one before it ends, if its time says nearly that. Encoders cut at whole frames. */
const SNAP_MS = 80;

export interface Span {
  start: number;
  end: number;
}

/** What lies on a lane's line, in order, without overlaps. */
export class Line {
  spans: Span[] = [];

  /** Where a chunk of this length goes that says it began at `started`, and where it must end at the latest. */
  place(started: number, length: number): Span & { limit: number } {
    const before = this.spans.filter((span) => span.start < started + SNAP_MS && Math.abs(span.start - started) > SNAP_MS).pop();
    const start = before && Math.abs(before.end - started) <= SNAP_MS ? before.end : Math.max(started, before?.end ?? started);
    const after = this.spans.find((span) => span.start > start + SNAP_MS);
    const limit = after && after.start < start + length ? after.start : Infinity;
    return { start, end: Math.min(start + length, limit), limit };
  }

  add(span: Span): void {
    this.spans = [...this.spans.filter((other) => Math.abs(other.start - span.start) > SNAP_MS), { start: span.start, end: span.end }]
      .sort((a, b) => a.start - b.start);
  }

  /** Forgets what ends before `at`. */
  cut(at: number): void {
    this.spans = this.spans.filter((span) => span.end > at);
  }

  at(time: number): Span | undefined {
    return this.spans.find((span) => span.start <= time && time < span.end);
  }

  after(time: number): Span | undefined {
    return this.spans.find((span) => span.start > time);
  }

  get end(): number {
    return this.spans.length ? (this.spans[this.spans.length - 1] as Span).end : -Infinity;
  }

  get start(): number {
    return this.spans[0]?.start ?? Infinity;
  }

  get last(): Span | undefined {
    return this.spans[this.spans.length - 1];
  }
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
  if (live && growing) {
    const chunk = last.end - last.start;
    const lag = last.end - at;
    const aim = last.end - AIM * chunk;
    if (lag > MOST * chunk + 300) {
      // There may be a hole where it aims.
      const to = Math.max(aim, main.at(aim)?.start ?? main.after(aim)?.start ?? last.start);
      return { what: "jump", to, over: to - at, why: "live" };
    }
    if (here) return { what: "go", rate: lag > 1.7 * chunk ? 1.06 : 1 };
  } else if (here) {
    return { what: "go", rate: 1 };
  }
  const next = Math.min(...lines.map((line) => line.after(at)?.start ?? Infinity));
  if (next === Infinity) return { what: "wait" };
  return next - at <= HOLE_MS ? { what: "jump", to: next, over: 0, why: "gap" } : { what: "jump", to: next, over: next - at, why: "gap" };
}

/** Where following the recording begins. */
export function liveStart(lines: Line[]): number | null {
  const main = lines.find((line) => line.spans.length);
  const last = main?.last;
  return last ? Math.max(main.start, last.end - AIM * (last.end - last.start)) : null;
}
