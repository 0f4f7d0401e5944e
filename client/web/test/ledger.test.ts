import assert from "node:assert/strict";
import { test } from "node:test";
import type { Begins } from "../src/rules/assembly";
import { Ledger, markOf } from "../src/rules/ledger";
import { missed } from "../src/rules/missed";
import { covered, summary } from "../src/rules/summary";
import { forAll } from "./random";

const begins = (index: number, more: Partial<Begins> = {}): Begins => ({
  stream: "a", index, lane: "audio", media: "audio", length: 10, sha256: "aa", started: index * 2000, ended: index * 2000 + 2000,
  state: "arriving", replay: false, ...more,
});
const marks = (ledger: Ledger): string[] => ledger.all().map((chunk) => `${chunk.index} ${markOf(chunk)}`);

test("a chunk goes from receiving over unconfirmed to confirmed", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  assert.deepEqual(marks(ledger), ["1 receiving"]);
  ledger.opened("a", 1);
  assert.deepEqual(marks(ledger), ["1 unconfirmed"]);
  ledger.confirmed("a", 1, "receipt", "aa", "r");
  assert.deepEqual(marks(ledger), ["1 confirmed"]);
  ledger.rejected("a", 1, "rejected");
  ledger.omitted("a", 1, 1, "evicted");
  ledger.begins(begins(1, { replay: true }));
  assert.deepEqual(marks(ledger), ["1 confirmed"], "what is confirmed stays so");
  assert.equal(ledger.get("a", 1)?.receipt, "r");
});

test("bytes that are another's, or never came whole, are not here", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3, 4]) ledger.begins(begins(index));
  ledger.bad("a", 1, "hash_mismatch");
  ledger.bad("a", 2, "torn");
  ledger.withdrawn("a", 3, "stalled");
  ledger.disconnected();
  assert.deepEqual(marks(ledger), ["1 rejected", "2 missing", "3 missing", "4 missing"]);
  ledger.begins(begins(3));
  assert.deepEqual(marks(ledger)[2], "3 receiving", "a later attempt shows it anew");
});

test("a chunk that is replaced by other bytes is shown anew", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  ledger.opened("a", 1);
  assert.equal(ledger.wants(begins(1)), false);
  assert.equal(ledger.wants(begins(1, { sha256: "bb" })), true);
  ledger.begins(begins(1, { sha256: "bb" }));
  assert.deepEqual(marks(ledger), ["1 receiving"]);
});

test("what is left out has a place between its neighbours", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  ledger.omitted("a", 2, 3, "slow");
  assert.deepEqual(ledger.all().map((chunk) => [chunk.index, chunk.started, chunk.why ?? ""]), [[1, 2000, ""], [2, 4000, "slow"], [3, 6000, "slow"]]);
  ledger.begins(begins(3));
  assert.deepEqual(marks(ledger), ["1 receiving", "2 missing", "3 receiving"]);
  ledger.begins(begins(7));
  assert.deepEqual(marks(ledger).slice(3), ["4 missing", "5 missing", "6 missing", "7 receiving"], "a lane that was off");
});

test("news that come before their chunk wait for it", () => {
  const ledger = new Ledger();
  ledger.confirmed("a", 1, "relay", "aa");
  ledger.rejected("a", 2, "rejected");
  assert.equal(ledger.all().length, 0);
  ledger.begins(begins(1));
  ledger.begins(begins(2));
  assert.deepEqual(marks(ledger), ["1 confirmed", "2 rejected"]);
});

test("the core's list adds what the relay no longer has", () => {
  const ledger = new Ledger();
  ledger.begins(begins(2));
  ledger.coreHas(begins(1), "ref1", "core");
  ledger.coreHas(begins(2), "ref2", "core");
  assert.deepEqual(marks(ledger), ["1 confirmed", "2 confirmed"]);
  assert.deepEqual([ledger.get("a", 1)?.here, ledger.get("a", 1)?.ref, ledger.get("a", 2)?.gone], [false, "ref1", false]);
});

/** Whatever is told in whatever order: confirmed is only what the core confirmed, and whole only what was opened. */
test("nothing is called safe that the core did not confirm", () => {
  forAll(300, (random) => {
    const ledger = new Ledger();
    const confirmed = new Set<string>();
    const opened = new Set<string>();
    const name = (chunk: { index: number; sha256: string }): string => `${chunk.index} ${chunk.sha256}`;
    for (let n = 0; n < 120; n++) {
      const index = 1 + random.below(12);
      const sha256 = random.of(["aa", "aa", "aa", "bb"]);
      switch (random.below(13)) {
        case 0: case 1: {
          const known = ledger.get("a", index);
          const proven = known?.proof ? known.sha256 : undefined;
          // What is replaced is not here any more, also where it comes again.
          if (!proven && known?.sha256 !== sha256) opened.delete(name({ index, sha256 }));
          ledger.begins(begins(index, { sha256, replay: random.below(2) === 0 }));
          if (proven) assert.equal(ledger.get("a", index)?.sha256, proven, "what is safe is not replaced");
          break;
        }
        case 2: {
          const known = ledger.get("a", index);
          if (known && known.times !== "guessed") opened.add(name(known)), ledger.opened("a", index);
          break;
        }
        case 3: confirmed.add(name({ index, sha256 })); ledger.confirmed("a", index, "relay", sha256); break;
        case 4: ledger.rejected("a", index, "rejected"); break;
        case 5: ledger.omitted("a", index, index + random.below(3), "slow"); break;
        case 6: ledger.withdrawn("a", index, "stalled"); break;
        case 7: ledger.bad("a", index, "hash_mismatch"); break;
        case 8: ledger.disconnected(); break;
        case 9: ledger.progress("a", index, random.next()); break;
        case 10: ledger.freed("a", index); break;
        case 11: {
          const proof = random.of(["core", "receipt", undefined] as const);
          if (proof) confirmed.add(name({ index, sha256 }));
          ledger.coreHas(begins(index, { sha256 }), "ref", proof);
          break;
        }
        default: ledger.stream("a", "audio");
      }
      for (const chunk of ledger.all()) {
        if (markOf(chunk) === "confirmed") assert.ok(confirmed.has(name(chunk)), `${chunk.index} at step ${n}`);
        if (chunk.here) assert.ok(opened.has(name(chunk)), `${chunk.index} is not whole, step ${n}`);
      }
      if (summary(ledger.all(), ledger.lostUnsafe).allSafe) assert.ok(ledger.all().every((chunk) => !chunk.seen || chunk.proof));
      const indexes = ledger.all().map((chunk) => chunk.index);
      assert.equal(new Set(indexes).size, indexes.length, "each once");
    }
  });
});

test("not all is safe while something that was seen here is not", () => {
  const ledger = new Ledger();
  for (const index of [1, 2]) ledger.begins(begins(index)), ledger.opened("a", index);
  assert.equal(summary(ledger.all()).allSafe, false, "nothing is safe");
  ledger.confirmed("a", 1, "receipt", "aa");
  ledger.rejected("a", 2, "terminal_failure");
  const refused = summary(ledger.all());
  assert.deepEqual([refused.allSafe, refused.refusedMs, refused.counts.rejected, refused.safeUpTo], [false, 2000, 1, 4000]);
  ledger.confirmed("a", 2, "receipt", "aa");
  assert.equal(summary(ledger.all()).allSafe, true);
  ledger.begins(begins(3));
  ledger.opened("a", 3);
  ledger.freed("a", 3);
  assert.deepEqual([markOf(ledger.get("a", 3) as never), summary(ledger.all()).allSafe], ["missing", false], "freed is not safe");
  assert.equal(ledger.wants(begins(3)), true, "what was freed is wanted again");
});

test("a confirmation of other bytes confirms nothing, and what is safe is not replaced", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  ledger.opened("a", 1);
  ledger.confirmed("a", 1, "receipt", "bb");
  assert.deepEqual(marks(ledger), ["1 unconfirmed"]);
  ledger.coreHas(begins(1, { sha256: "bb" }), "ref");
  assert.equal(ledger.get("a", 1)?.sha256, "aa", "a list that proves nothing replaces nothing");
  ledger.confirmed("a", 1, "receipt", "aa");
  ledger.begins(begins(1, { sha256: "bb" }));
  ledger.coreHas(begins(1, { sha256: "bb" }), "ref", "core");
  assert.deepEqual([ledger.get("a", 1)?.sha256, ledger.wants(begins(1, { sha256: "bb" }))], ["aa", false]);
});

test("times are the core's as soon as it lists the chunk", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1, { started: 9e12, ended: 9e12 + 2000 }));
  assert.equal(ledger.get("a", 1)?.times, "relay");
  ledger.coreHas(begins(1), "ref", "receipt");
  const { times, started, ended } = ledger.get("a", 1) ?? {};
  assert.deepEqual([times, started, ended], ["core", 2000, 4000]);
});

test("whatever a relay says costs a bounded time and room", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  for (let n = 0; n < 2000; n++) ledger.omitted("a", 1, 2 ** 32, "evicted");
  ledger.omitted("a", 2 ** 31, 2 ** 32, "evicted");
  assert.ok(ledger.all().length < 10_000 && ledger.all().every((chunk) => chunk.index < 10_000), "near what was there");
  for (let n = 0; n < 30_000; n++) ledger.begins(begins(n * 1000 + 2, { started: n, ended: n + 1 }));
  assert.ok(ledger.all().length <= 20_000);
  for (let n = 0; n < 5000; n++) ledger.stream(`s${n}`, "audio");
  assert.equal(ledger.stream("one more", "audio"), false);
  assert.ok(ledger.stream("a", "audio"), "those that are known go on");
});

test("progress changes no more than its chunk", () => {
  const ledger = new Ledger();
  ledger.begins(begins(1));
  const { version } = ledger;
  ledger.progress("a", 1, 0.5);
  assert.deepEqual([ledger.version, [...ledger.moving].map((chunk) => chunk.progress)], [version, [0.5]]);
});

test("safe up to: the end before the first stretch that is not", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3, 4]) {
    ledger.begins(begins(index));
    ledger.opened("a", index);
  }
  assert.equal(summary(ledger.all()).safeUpTo, undefined);
  for (const index of [1, 2, 4]) ledger.confirmed("a", index, "receipt", "aa");
  const { safeUpTo, unsafeMs, counts } = summary(ledger.all());
  assert.deepEqual([safeUpTo, unsafeMs, counts.confirmed, counts.unconfirmed], [6000, 2000, 3, 1]);
});

test("a hole in what is safe is said", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3]) ledger.begins(begins(index));
  ledger.withdrawn("a", 2, "stalled");
  for (const index of [1, 3]) ledger.confirmed("a", index, "receipt", "aa");
  const { safeUpTo, holesMs } = summary(ledger.all());
  assert.deepEqual([safeUpTo, holesMs], [8000, 2000]);
});

test("stretches that lie over each other count once", () => {
  assert.equal(covered([[0, 2], [1, 4], [6, 7]]), 5);
  assert.equal(covered([]), 0);
});

test("what was missed is what came meanwhile, here or not", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3, 4]) ledger.begins(begins(index));
  ledger.opened("a", 1);
  ledger.opened("a", 2);
  ledger.opened("a", 3);
  ledger.omitted("a", 4, 4, "slow");
  assert.deepEqual(missed(ledger.of("audio"), 4000), { caughtUpMs: 4000, missingMs: 2000 });
  assert.deepEqual(missed(ledger.of("audio"), 10_000), { caughtUpMs: 0, missingMs: 0 });
});

const places = (ledger: Ledger): number[] => ledger.all().map(({ started }) => started / 2000);
const NOW = 1_800_000_000_000;

test("a recorder's clock that is set back moves nothing back: sound and picture go on in step", () => {
  const ledger = new Ledger();
  const said = (index: number, lane: "audio" | "video", at: number): void => ledger.begins(begins(index, { lane, stream: lane, started: at, ended: at + 2000 }));
  for (const index of [1, 2, 3, 4]) {
    const back = index > 2 ? 600_000 : 0;
    said(index, "audio", index * 2000 + 600_000 - back);
    // An encoder cuts a little later.
    said(index, "video", index * 2000 + 600_040 - back);
  }
  assert.deepEqual(ledger.of("audio").map(({ index, started }) => [index, started]), [[1, 602_000], [2, 604_000], [3, 606_000], [4, 608_000]]);
  assert.deepEqual(ledger.of("video").map(({ index, started }) => [index, started]), [[1, 602_040], [2, 604_040], [3, 606_040], [4, 608_040]]);
  assert.deepEqual([ledger.odd, ledger.get("audio", 4)?.shift], ["back", 600_000]);
  // Set right again: no hole of ten minutes.
  said(5, "audio", 5 * 2000 + 600_000);
  assert.deepEqual([ledger.get("audio", 5)?.started, ledger.get("audio", 5)?.shift], [610_000, 0]);
});

test("chunks that come in any order lie in the order of their stream, wherever a clock jumped", () => {
  forAll(200, (random) => {
    const ledger = new Ledger(() => NOW);
    const jump = 1 + random.below(10);
    const times = Array.from({ length: 12 }, (_, i) => NOW - 500_000 + i * 2000 - (i + 1 > jump ? random.below(4) * 60_000 + 3000 : 0));
    // As a relay sends them: what is new in order, what is fetched anywhere between.
    const late = random.below(12);
    const order = [...times.keys()].filter((i) => i !== late).concat(late);
    for (const i of order) ledger.begins(begins(i + 1, { started: times[i] as number, ended: (times[i] as number) + 2000, replay: i === late }));
    const all = [...ledger.all()];
    if (late !== 11 && late !== jump) assert.deepEqual(all.map(({ index }) => index).filter((index) => index !== late + 1), order.slice(0, -1).map((i) => i + 1));
    const newest = all.reduce((one, other) => (ledger.later(other, one) ? other : one));
    assert.equal(newest.index, 12);
  });
});

test("times that are far in the future are placed by order, by the clock that can be trusted", () => {
  const [wrong, ledger] = [NOW + 72 * 3600_000, new Ledger(() => NOW)];
  for (const index of [1, 2, 3]) ledger.begins(begins(index, { started: wrong + index * 2000, ended: wrong + index * 2000 + 2000 }));
  assert.deepEqual([ledger.all().map(({ started }) => started - NOW), ledger.odd], [[-2000, 0, 2000], "ahead"]);
  // A device that is itself days behind believes the core, and finds nothing wrong.
  const other = new Ledger(() => wrong);
  other.begins(begins(1, { started: wrong, ended: wrong + 2000 }));
  assert.deepEqual([other.odd, other.get("a", 1)?.shift], [null, 0]);
});

test("one odd time among right ones takes its place between them", () => {
  const ledger = new Ledger(() => NOW);
  for (const index of [1, 2, 3, 4]) {
    const at = NOW - 100_000 + index * 2000 + (index === 3 ? 40 * 3600_000 : 0);
    ledger.begins(begins(index, { started: at, ended: at + 2000 }));
  }
  assert.deepEqual(ledger.all().map(({ index, started }) => [index, started - NOW]), [[1, -98_000], [2, -96_000], [3, -94_000], [4, -92_000]]);
});

test("a stream that begins anew with a clock that was set back goes on after the one before", () => {
  for (const replay of [false, true]) {
    const ledger = new Ledger(() => NOW);
    for (const index of [1, 2]) ledger.begins(begins(index, { replay }));
    ledger.stream("b", "audio", "a");
    // The phone can't have recorded this while it recorded the other.
    ledger.begins(begins(1, { stream: "b", started: 2500, ended: 4500, replay }));
    assert.deepEqual(places(ledger), [1, 2, 3], `replay ${replay}`);
  }
});

test("of two streams the one that goes on is the newest, and what a phone brings of an older one meanwhile is not", () => {
  const ledger = new Ledger(() => NOW);
  const said = (stream: string, index: number, started: number, at: number) => {
    ledger.begins(begins(index, { stream, started, ended: started + 2000 }), at);
    const chunk = ledger.get(stream, index);
    assert.ok(chunk);
    return chunk;
  };
  const fresh = said("new", 1, 500_000, 0);
  const kept = said("old", 7, 100_000, 1000);
  assert.deepEqual([ledger.later(kept, fresh), ledger.later(fresh, kept), ledger.odd], [false, true, null]);
  const next = said("new", 2, 502_000, 2000);
  assert.equal(ledger.later(next, kept), true);
  // Recorded with a clock that was set back by an hour, after the other one ended.
  const back = said("back", 1, 300_000, 12_500);
  assert.deepEqual([ledger.later(back, next), ledger.later(next, back), back.shift], [true, false, 0]);
});

test("what is not what the phone sealed is refused, whatever is signed for it", () => {
  const ledger = new Ledger();
  for (const index of [1, 2]) ledger.begins(begins(index));
  ledger.bad("a", 1, "sealed");
  ledger.confirmed("a", 1, "receipt", "aa", "r");
  ledger.confirmed("a", 2, "receipt", "aa", "r");
  ledger.bad("a", 2, "sealed");
  assert.deepEqual(marks(ledger), ["1 rejected", "2 rejected"]);
  assert.deepEqual([summary(ledger.all()).safeUpTo, ledger.wants(begins(1))], [undefined, false]);
  ledger.begins(begins(1));
  assert.deepEqual(marks(ledger)[0], "1 rejected");
});
