import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { afterEnding, Ladder } from "../src/rules/ladder";
import { doubt, type Facts, greeted, heardAgo, phoneOf, screenOf, troubleOf } from "../src/rules/status";
import { Pauses } from "../src/rules/pauses";
import { Sleep } from "../src/rules/sleep";
import { aside } from "../src/ui/view";
import { crc32, zip } from "../src/rules/zip";
import { joined, utf8 } from "../src/rules/bytes";
import { clock, length, pick } from "../src/ui/text";

const facts = (more: Partial<Facts> = {}): Facts =>
  ({ watching: true, watched: true, admitted: true, coreAway: false, relayAway: false, anyChunk: true, ...more });

test("the phone is what the relay says it is, on this connection", () => {
  assert.equal(phoneOf(facts()), "unknown");
  assert.equal(phoneOf(facts({ lastSign: 0 })), "live");
  assert.equal(phoneOf(facts({ lastSign: 0, quiet: true })), "quiet");
  assert.equal(phoneOf(facts({ lastSign: 0, quiet: true, checking: true })), "quiet");
  assert.equal(phoneOf(facts({ lastSign: 0, checking: true })), "checking", "a dead connection is not a quiet phone");
  assert.equal(phoneOf(facts({ lastSign: 0, capture: "silent" })), "silent");
  assert.equal(phoneOf(facts({ lastSign: 0, relayAway: true, capture: "silent" })), "cut");
  assert.equal(phoneOf(facts({ relayAway: true, capture: "ended" })), "ended");
  assert.equal(heardAgo(facts({ lastSign: 1000 }), 15_900), 14);
  assert.equal(heardAgo(facts(), 5), null);
  const again = facts({ lastSign: 0, quiet: true, capture: "silent" });
  greeted(again);
  assert.equal(phoneOf(again), "unknown", "what the connection before said is over");
});

test("a page that does not watch any more says nothing of the phone", () => {
  for (const stopped of ["expired", "revoked"] as const) {
    assert.equal(phoneOf(facts({ stopped, lastSign: 0, quiet: true })), "stopped");
    assert.equal(phoneOf(facts({ stopped, lastSign: 0, capture: "silent" })), "stopped");
  }
  assert.equal(phoneOf(facts({ closed: true, lastSign: 0 })), "closed", "the archive's word is not the phone's");
  assert.equal(phoneOf(facts({ closed: true, capture: "ended" })), "ended");
});

test("a connection on which nothing comes is asked, doubted and left", () => {
  const live = facts({ lastSign: 0 });
  assert.deepEqual([5_999, 6_000].map((ms) => doubt(live, ms, null)), ["none", "probe"]);
  for (const quiet of [facts({ lastSign: 0, quiet: true }), facts({ lastSign: 0, capture: "silent" }), facts()]) {
    assert.deepEqual([19_999, 20_000].map((ms) => doubt(quiet, ms, null)), ["none", "probe"], "the relay owes no word");
  }
  assert.deepEqual([2_499, 2_500, 7_999, 8_000].map((ms) => doubt(live, ms + 6_000, ms)), ["none", "unsure", "unsure", "lost"]);
});

test("screens stand where there is nothing to show", () => {
  const empty = { anyChunk: false };
  assert.equal(screenOf(facts()), null);
  assert.equal(screenOf(facts(empty)), "nothing_yet");
  assert.equal(screenOf(facts({ ...empty, watching: false, admitted: false })), "connecting");
  assert.equal(screenOf(facts({ ...empty, watching: false, admitted: false, coreAway: true })), "core_away");
  assert.equal(screenOf(facts({ ...empty, watching: false, relayAway: true })), "relay_away");
  assert.equal(screenOf(facts({ ...empty, stopped: "revoked" })), "revoked");
  assert.equal(screenOf(facts({ ...empty, stopped: "expired" })), "expired");
  assert.equal(screenOf(facts({ ...empty, watching: false, capture: "ended" })), "over_empty");
  assert.equal(screenOf(facts({ ...empty, watching: false, closed: true, coreAway: true })), "closed_empty");
  assert.equal(screenOf(facts({ stopped: "revoked" })), null, "what came before stays");
});

test("trouble is said beside the picture", () => {
  assert.equal(troubleOf(facts()), null);
  assert.equal(troubleOf(facts({ coreAway: true })), "core_away");
  assert.equal(troubleOf(facts({ coreAway: true, relayAway: true })), "relay_away");
  assert.equal(troubleOf(facts({ stopped: "expired", relayAway: true })), "expired");
  assert.equal(troubleOf(facts({ capture: "ended", watching: false, relayAway: true })), null);
});

test("tries come soon and apart from others first, then slower, and soon again after a good connection", () => {
  const ladder = new Ladder();
  const next = Array.from({ length: 7 }, () => ladder.next(0, 0.5));
  assert.deepEqual(next, [250, 500, 1000, 2000, 4000, 4000, 4000]);
  assert.equal(ladder.next(60_000, 0.9), 450);
  assert.equal(ladder.next(100, 1), 625, "one that greets and ends at once is no good one");
});

test("what an ending asks for", () => {
  assert.deepEqual(["ended", "capability_expired", "capability_revoked", "draining", "contact_too_slow", "x"].map(afterEnding),
    ["over", "renew", "renew", "again", "again", "again"]);
});

test("a saved archive is one that other programs read", () => {
  assert.equal(crc32(utf8("123456789")), 0xcbf43926);
  const dir = mkdtempSync(join(tmpdir(), "page-"));
  const entries = [{ name: "manifest.json", bytes: utf8("{}") }, { name: "sound/ä.mp4", bytes: new Uint8Array(70_000).fill(7) }];
  writeFileSync(join(dir, "a.zip"), joined(zip(entries, new Date(2026, 1, 3, 4, 5, 6))));
  const script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\nprint([(i.filename, i.file_size, i.date_time) for i in z.infolist()])";
  const said = execFileSync("python3", ["-c", script, join(dir, "a.zip")]).toString().trim();
  assert.equal(said, "[('manifest.json', 2, (2026, 2, 3, 4, 5, 6)), ('sound/ä.mp4', 70000, (2026, 2, 3, 4, 5, 6))]");
  rmSync(dir, { recursive: true });
});

test("lengths are said in whole units, in the first language there is", () => {
  const { text, lang } = pick(["xx-YY", "en-GB"]);
  assert.equal(lang, "en");
  assert.deepEqual([0, 14_400, 60_000, 125_000, 3_600_000, 5_400_000].map((ms) => length(text, ms).replace(/\u00a0/g, " ")), ["0 s", "14 s", "1 min", "2 min 5 s", "1 h", "1 h 30 min"]);
  assert.equal(pick([]).lang, "en");
  assert.deepEqual([pick(["ar-XB", "en"]).text.dir, pick(["ar-EG", "en"]).text.dir, pick(["ar-EG"]).lang], ["rtl", "ltr", "en"]);
});

test("a time of another day has its date, and no time breaks anything", () => {
  const at = new Date(2026, 1, 3, 4, 5, 6).getTime();
  assert.equal(clock("en", at, at + 1000), "04:05:06");
  assert.match(clock("en", at, at + 864e5), /Feb 3, 2026.*04:05:06/);
  for (const bad of [NaN, Infinity, 9e15]) assert.equal(clock("en", bad), "");
});

test("no word suggests that help was called, and one sentence says that it was not", () => {
  const { text } = pick(["en"]);
  const words: string[] = [];
  const collect = (value: unknown): void => {
    if (typeof value === "string") words.push(value);
    else if (typeof value === "object" && value) Object.values(value).forEach(collect);
  };
  collect(text);
  assert.ok(!words.some((words) => /need not do|nothing to do/i.test(words)), "nobody is told to sit still");
  const about = words.filter((words) => /police|ambulance|help|emergency|rescue/i.test(words));
  assert.deepEqual(about, [text.nobodyCalled]);
});

test("while only what is not shown comes, the page neither catches up for ever nor says that the phone is live", () => {
  assert.equal(phoneOf(facts({ idle: true })), "idle");
  assert.equal(phoneOf(facts({ idle: true, lastSign: 0 })), "live");
  assert.equal(phoneOf(facts({ idle: true, capture: "silent" })), "silent");
  assert.equal(phoneOf(facts({ idle: true, checking: true })), "checking");
});

test("a phone that is quiet before anything came of it is said to be", () => {
  const { text } = pick(["en"]);
  assert.equal(aside(text, "nothing_yet", "silent", 75).replace(/\u00a0/g, " "), "The phone has gone silent. Last heard from the phone 1 min 15 s ago");
  assert.equal(aside(text, "nothing_yet", "live", 0), "");
  assert.equal(aside(text, "revoked", "silent", 75), "");
});

test("what does not work is tried ever more seldom, unless it worked or somebody asks", () => {
  const pauses = new Pauses(8000);
  const tries = (until: number, from = 0): number[] => Array.from({ length: (until - from) / 1000 }, (_, i) => from + i * 1000).filter((at) => pauses.due("a", at));
  assert.deepEqual(tries(100_000), [0, 8000, 24_000, 56_000]);
  assert.equal(pauses.due("b", 100_000), true);
  pauses.ease("a");
  assert.equal(pauses.due("a", 100_000), true);
  pauses.clear("a");
  assert.equal(pauses.due("a", 100_001), true);
  assert.ok(tries(100_000_000, 100_001).length < 200, "ten minutes at most");
});

test("a device that slept is noticed by its two clocks", () => {
  const sleep = new Sleep();
  const looks: [number, number][] = [[0, 0], [1000, 1000], [2000, 3500], [3000, 604_500], [4000, 605_500], [64_000, 665_500], [65_000, 0]];
  assert.deepEqual(looks.map(([steady, day]) => sleep.slept(steady, day)), [0, 0, 0, 600_000, 0, 0, 0]);
});
