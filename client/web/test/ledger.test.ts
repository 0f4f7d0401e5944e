import assert from "node:assert/strict";
import { test } from "node:test";
import type { Begins } from "../src/rules/assembly";
import { covered, Ledger, markOf, summary } from "../src/rules/ledger";
import { missed } from "../src/rules/missed";
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
