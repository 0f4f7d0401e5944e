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
  ledger.confirmed("a", 1, "receipt", "r");
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
  ledger.confirmed("a", 1, "relay");
  ledger.rejected("a", 2, "rejected");
  assert.equal(ledger.all().length, 0);
  ledger.begins(begins(1));
  ledger.begins(begins(2));
  assert.deepEqual(marks(ledger), ["1 confirmed", "2 rejected"]);
});

test("the core's list adds what the relay no longer has", () => {
  const ledger = new Ledger();
  ledger.begins(begins(2));
  ledger.coreHas(begins(1), "ref1");
  ledger.coreHas(begins(2), "ref2");
  assert.deepEqual(marks(ledger), ["1 confirmed", "2 confirmed"]);
  assert.deepEqual([ledger.get("a", 1)?.here, ledger.get("a", 1)?.ref, ledger.get("a", 2)?.gone], [false, "ref1", false]);
});

/** Whatever is told in whatever order: confirmed is only what the core confirmed, and whole only what was opened. */
test("nothing is called safe that the core did not confirm", () => {
  forAll(300, (random) => {
    const ledger = new Ledger();
    const confirmed = new Set<number>();
    const opened = new Set<number>();
    for (let n = 0; n < 120; n++) {
      const index = 1 + random.below(12);
      const sha256 = random.of(["aa", "aa", "aa", "bb"]);
      switch (random.below(11)) {
        case 0: case 1: {
          const known = ledger.get("a", index);
          const anew = !known || known.guessed || known.sha256 !== sha256;
          if (anew) opened.delete(index);
          // Other bytes than those confirmed are another chunk; a protocol that is kept never confirms both.
          if (known && !known.guessed && known.sha256 !== sha256) confirmed.delete(index);
          ledger.begins(begins(index, { sha256, replay: random.below(2) === 0 }));
          break;
        }
        case 2: if (ledger.get("a", index)?.guessed === false) opened.add(index), ledger.opened("a", index); break;
        case 3: confirmed.add(index); ledger.confirmed("a", index, "relay"); break;
        case 4: ledger.rejected("a", index, "rejected"); break;
        case 5: ledger.omitted("a", index, index + random.below(3), "slow"); break;
        case 6: ledger.withdrawn("a", index, "stalled"); break;
        case 7: ledger.bad("a", index, "hash_mismatch"); break;
        case 8: ledger.disconnected(); break;
        case 9: ledger.progress("a", index, random.next()); break;
        default: ledger.stream("a", "audio");
      }
      for (const chunk of ledger.all()) {
        if (markOf(chunk) === "confirmed") assert.ok(confirmed.has(chunk.index), `${chunk.index} at step ${n}`);
        if (chunk.here) assert.ok(opened.has(chunk.index), `${chunk.index} is not whole, step ${n}`);
      }
      const indexes = ledger.all().map((chunk) => chunk.index);
      assert.equal(new Set(indexes).size, indexes.length, "each once");
    }
  });
});

test("safe up to: the end before the first stretch that is not", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3, 4]) {
    ledger.begins(begins(index));
    ledger.opened("a", index);
  }
  assert.equal(summary(ledger.all()).safeUpTo, undefined);
  for (const index of [1, 2, 4]) ledger.confirmed("a", index, "receipt");
  const { safeUpTo, unsafeMs, counts } = summary(ledger.all());
  assert.deepEqual([safeUpTo, unsafeMs, counts.confirmed, counts.unconfirmed], [6000, 2000, 3, 1]);
});

test("a hole in what is safe is said", () => {
  const ledger = new Ledger();
  for (const index of [1, 2, 3]) ledger.begins(begins(index));
  ledger.withdrawn("a", 2, "stalled");
  for (const index of [1, 3]) ledger.confirmed("a", index, "receipt");
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
