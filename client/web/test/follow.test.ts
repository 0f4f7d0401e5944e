import assert from "node:assert/strict";
import { test } from "node:test";
import { Line, liveStart, step } from "../src/rules/place";
import { forAll, Random } from "./random";

const CHUNK = 2000;
const TICK = 100;
const LENGTH = 120_000;

interface Followed {
  /** How often it stood still, and for how long in all. */
  stalls: number;
  stalledMs: number;
  jumps: number;
  /** How far behind the newest whole chunk's end it was at most. */
  farthest: number;
}

/** Two minutes of following a recording whose chunks come so late each, from some moment on; as the player does it. */
function follow(random: Random, late: (random: Random) => number): Followed {
  const line = new Line();
  const seen: Followed = { stalls: 0, stalledMs: 0, jumps: 0, farthest: 0 };
  let [now, cameAt, coming, comes] = [20_000 + random.next() * CHUNK, 0, 0, 0];
  let [at, rate, waiting]: [number | null, number, boolean] = [null, 1, false];
  const next = (): void => void (comes = Math.max(comes, (coming + 1) * CHUNK + 300 + late(random)));
  next();
  for (const end = now + LENGTH; now < end; now += TICK) {
    for (; comes <= now; next()) {
      line.add({ start: coming * CHUNK, end: ++coming * CHUNK, key: String(coming) });
      cameAt = now;
    }
    at ??= liveStart([line]) as number;
    const to: number = at + (waiting ? 0 : TICK * rate);
    const what = step({ at: to, lines: [line], live: true, growing: true, since: now - cameAt });
    if (what.what === "wait") {
      if (!waiting) seen.stalls++;
      seen.stalledMs += TICK;
      at = Math.min(to, line.end);
    } else {
      at = what.what === "jump" ? what.to : to;
      if (what.what === "jump") seen.jumps++;
      else rate = what.rate;
    }
    waiting = what.what === "wait";
    seen.farthest = Math.max(seen.farthest, line.end - at);
  }
  return seen;
}

/** The same for many who come at any moment. */
function all(runs: number, late: (random: Random) => number): Followed[] {
  const out: Followed[] = [];
  forAll(runs, (random) => void out.push(follow(random, late)));
  return out;
}
const sum = (list: Followed[], what: keyof Followed): number => list.reduce((total, one) => total + one[what], 0);

test("it is never further than in the chunk before the newest whole one, however late chunks come", () => {
  for (const most of [0, 500, 1000, 3000]) {
    for (const { farthest } of all(200, (random) => (random.below(4) ? 100 : most) * random.next())) {
      assert.ok(farthest <= 2 * CHUNK + TICK, `${farthest} ms behind, chunks up to ${most} ms late`);
    }
  }
});

test("where chunks come in time it neither stands still nor jumps", () => {
  for (const { stalls, jumps } of all(200, () => 0)) assert.deepEqual([stalls, jumps], [0, 0]);
});

test("chunks that are late by a quarter of their length hardly ever make it wait, and never jump", () => {
  const followed = all(300, (random) => 500 * random.next());
  assert.equal(sum(followed, "jumps"), 0);
  // Who comes just when a chunk came, and the next ones are late: at the beginning.
  assert.ok(sum(followed, "stalls") <= 30 && followed.every(({ stalledMs }) => stalledMs <= 500), `${sum(followed, "stalls")} stalls in ten hours`);
});

test("chunks of which one in twenty comes up to 1.5 s late make it wait less than once in a minute", () => {
  const followed = all(300, (random) => 100 * random.next() + (random.below(20) ? 0 : 1500 * random.next()));
  assert.ok(sum(followed, "stalls") < 300 && sum(followed, "jumps") < 30, `${sum(followed, "stalls")} stalls, ${sum(followed, "jumps")} jumps in ten hours`);
});
