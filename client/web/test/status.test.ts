import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { afterEnding, Ladder } from "../src/rules/ladder";
import { type Facts, heardAgo, phoneOf, screenOf, troubleOf } from "../src/rules/status";
import { crc32, zip } from "../src/rules/zip";
import { utf8 } from "../src/rules/bytes";
import { length, pick } from "../src/ui/text";

const facts = (more: Partial<Facts> = {}): Facts =>
  ({ watching: true, watched: true, admitted: true, coreAway: false, relayAway: false, anyChunk: true, ...more });

test("the phone is live, quiet after five seconds, and what the relay says it is", () => {
  assert.equal(phoneOf(facts(), 0), "unknown");
  assert.equal(phoneOf(facts({ lastSign: 0 }), 4999), "live");
  assert.equal(phoneOf(facts({ lastSign: 0 }), 5000), "quiet");
  assert.equal(phoneOf(facts({ lastSign: 0, capture: "silent" }), 0), "silent");
  assert.equal(phoneOf(facts({ lastSign: 0, relayAway: true, capture: "silent" }), 0), "cut");
  assert.equal(phoneOf(facts({ relayAway: true, capture: "ended" }), 0), "ended");
  assert.equal(heardAgo(facts({ lastSign: 1000 }), 15_900), 14);
  assert.equal(heardAgo(facts(), 5), null);
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
  assert.equal(screenOf(facts({ stopped: "revoked" })), null, "what came before stays");
});

test("trouble is said beside the picture", () => {
  assert.equal(troubleOf(facts()), null);
  assert.equal(troubleOf(facts({ coreAway: true })), "core_away");
  assert.equal(troubleOf(facts({ coreAway: true, relayAway: true })), "relay_away");
  assert.equal(troubleOf(facts({ stopped: "expired", relayAway: true })), "expired");
  assert.equal(troubleOf(facts({ capture: "ended", watching: false, relayAway: true })), null);
});

test("tries come at once first, then slower, and at once again after a good connection", () => {
  const ladder = new Ladder();
  const next = Array.from({ length: 8 }, () => ladder.next(0, 0.5));
  assert.deepEqual(next, [0, 250, 500, 1000, 2000, 4000, 4000, 4000]);
  assert.equal(ladder.next(60_000, 0.5), 0);
  assert.equal(ladder.next(0, 1), 312.5);
});

test("what an ending asks for", () => {
  assert.deepEqual(["ended", "capability_expired", "capability_revoked", "draining", "contact_too_slow", "x"].map(afterEnding),
    ["over", "renew", "renew", "again", "again", "again"]);
});

test("a saved archive is one that other programs read", () => {
  assert.equal(crc32(utf8("123456789")), 0xcbf43926);
  const dir = mkdtempSync(join(tmpdir(), "page-"));
  const entries = [{ name: "manifest.json", bytes: utf8("{}") }, { name: "sound/ä.mp4", bytes: new Uint8Array(70_000).fill(7) }];
  writeFileSync(join(dir, "a.zip"), zip(entries, new Date(2026, 1, 3, 4, 5, 6)));
  const script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\nprint([(i.filename, i.file_size, i.date_time) for i in z.infolist()])";
  const said = execFileSync("python3", ["-c", script, join(dir, "a.zip")]).toString().trim();
  assert.equal(said, "[('manifest.json', 2, (2026, 2, 3, 4, 5, 6)), ('sound/ä.mp4', 70000, (2026, 2, 3, 4, 5, 6))]");
  rmSync(dir, { recursive: true });
});

test("lengths are said in whole units, in the first language there is", () => {
  const { text, lang } = pick(["xx-YY", "en-GB"]);
  assert.equal(lang, "en");
  assert.deepEqual([0, 14_400, 60_000, 125_000, 3_600_000, 5_400_000].map((ms) => length(text, ms)), ["0 s", "14 s", "1 min", "2 min 5 s", "1 h", "1 h 30 min"]);
  assert.equal(pick([]).lang, "en");
});

test("no word suggests that help was called, and one sentence says that it was not", () => {
  const { text } = pick(["en"]);
  const words: string[] = [];
  const collect = (value: unknown): void => {
    if (typeof value === "string") words.push(value);
    else if (typeof value === "object" && value) Object.values(value).forEach(collect);
  };
  collect(text);
  const about = words.filter((words) => /police|ambulance|help|emergency|rescue/i.test(words));
  assert.deepEqual(about, [text.nobodyCalled]);
});
