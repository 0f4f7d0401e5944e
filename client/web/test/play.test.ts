import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Axis } from "../src/rules/axis";
import { readMedia, rebased } from "../src/rules/mp4";
import { farthest, Line, liveStart, step } from "../src/rules/place";
import { Pieces } from "../src/io/plain";
import { forAll } from "./random";

const file = (path: string): Uint8Array => new Uint8Array(readFileSync(`../recording/${path}`));

test("a chunk says its codec, where it begins and how long it is", () => {
  assert.deepEqual(readMedia(file("live_preview/02.mp4")), { type: 'video/mp4; codecs="avc1.42c00d"', begins: 2, duration: 2 });
  assert.deepEqual(readMedia(file("audio_priority/02.mp4")), { type: 'audio/mp4; codecs="mp4a.40.2"', begins: 2.016, duration: 1.984 });
  assert.equal(readMedia(rebased(file("audio_priority/02.mp4")))?.begins, 0);
});

test("what is no such file is none", () => {
  const chunk = file("audio_priority/01.mp4");
  forAll(300, (random) => {
    const bad = chunk.slice(0, random.below(900));
    for (let n = random.below(4); n > 0 && bad.length; n--) bad[random.below(bad.length)] = random.below(256);
    readMedia(bad);
    rebased(bad);
  });
  assert.equal(readMedia(new Uint8Array(0)), null);
  assert.equal(readMedia(new Uint8Array(400)), null);
});

const line = (...spans: [number, number][]): Line => {
  const out = new Line();
  for (const [start, end] of spans) out.add({ start, end, key: String(start) });
  return out;
};

test("chunks that nearly touch are joined, others lie where their time says", () => {
  const sound = line([0, 2016]);
  assert.deepEqual(sound.place(2000, 1984, "b"), { start: 2016, end: 4000, limit: Infinity, key: "b" });
  assert.equal(sound.place(2090, 2000, "b")?.start, 2016);
  assert.equal(sound.place(2500, 2000, "b")?.start, 2500);
  assert.equal(sound.place(1000, 2000, "b")?.start, 2016, "never over what is there");
  assert.equal(sound.place(0, 2000, "b")?.start, 2016, "nor where another one begins at the same time");
  assert.equal(sound.place(0, 2000, "0")?.start, 0, "but where it was before");
});

test("a late chunk does not cut into the one after it", () => {
  const picture = line([0, 2000], [4000, 6000]);
  assert.deepEqual(picture.place(2000, 2066, "b"), { start: 2000, end: 4000, limit: 4000, key: "b" });
  assert.equal(line([0, 2000], [2000, 4000]).place(1000, 2000, "b"), null, "there is no room");
});

test("a lane in any order is a line without overlaps, each chunk near its time", () => {
  forAll(300, (random) => {
    const times = Array.from({ length: 12 }, (_, i) => i * 2000);
    const lane = new Line();
    while (times.length) {
      const started = times.splice(random.below(times.length), 1)[0] as number;
      // An encoder cuts at whole frames: a little late, then a little early.
      const place = lane.place(started, (started / 2000) % 2 ? 1984 : 2016, String(started));
      assert.ok(place);
      assert.ok(Math.abs(place.start - started) <= 80, `${place.start} for ${started}`);
      lane.add(place);
    }
    lane.spans.reduce((before, span) => {
      assert.ok(span.start >= before - 0.001 && span.end > span.start);
      return span.end;
    }, -Infinity);
    assert.equal(lane.spans.length, 12);
  });
});

const playing = (at: number, lines: Line[], live = true, growing = true, since = 0) => step({ at, lines, live, growing, since });

test("at the edge it follows within two chunks, and hurries or holds back a little before it jumps or waits", () => {
  const sound = line([0, 2000], [2000, 4000], [4000, 6000], [6000, 8000]);
  assert.deepEqual(playing(5000, [sound]), { what: "go", rate: 1 });
  assert.deepEqual(playing(4400, [sound]), { what: "go", rate: 1.06 });
  assert.deepEqual(playing(5400, [sound]), { what: "go", rate: 0.95 });
  // The same places just before the next chunk comes.
  assert.deepEqual(playing(6900, [sound], true, true, 1900), { what: "go", rate: 1 });
  assert.deepEqual(playing(6300, [sound], true, true, 1900), { what: "go", rate: 1.06 });
  assert.deepEqual(playing(7300, [sound], true, true, 1900), { what: "go", rate: 0.95 });
  assert.deepEqual(playing(7400, [sound], true, true, 9000), { what: "go", rate: 0.95 }, "it is late: what is left is made to last");
  assert.deepEqual(playing(3950, [sound]), { what: "go", rate: 1.06 });
  assert.deepEqual(playing(3890, [sound]), { what: "jump", to: 5000, over: 1110, why: "live" });
  assert.deepEqual(playing(1000, [sound]), { what: "jump", to: 5000, over: 4000, why: "live" });
  assert.deepEqual(playing(1000, [sound], true, true, 1500), { what: "jump", to: 6500, over: 5500, why: "live" });
  assert.deepEqual(playing(1000, [sound], false), { what: "go", rate: 1 }, "who looks back is left alone");
  assert.deepEqual(playing(1000, [sound], true, false), { what: "go", rate: 1 }, "nothing more comes: the rest is played");
  assert.deepEqual(playing(8000, [sound]), { what: "wait" });
  assert.equal(liveStart([sound]), 6000);
  assert.equal(liveStart([line([0, 2000], [2000, 4000], [4000, 4500])]), 2500, "the last one may be cut short");
});

test("a gap is jumped, unless the other lane fills it", () => {
  const sound = line([0, 2000], [6000, 8000]);
  assert.deepEqual(playing(2000, [sound], false), { what: "jump", to: 6000, over: 4000, why: "gap" });
  assert.deepEqual(playing(2000, [sound, line([0, 8000])], false), { what: "go", rate: 1 });
  assert.deepEqual(playing(2000, [sound, line([0, 2000], [3000, 5000])], false), { what: "jump", to: 3000, over: 1000, why: "gap" });
  const seams = line([0, 2000], [2090, 4000]);
  assert.deepEqual(playing(2000, [seams], false), { what: "jump", to: 2090, over: 0, why: "gap" }, "not worth a word");
});

test("playback always goes on: it never stands where there is something later", () => {
  forAll(300, (random) => {
    const lane = (): Line => line(...Array.from({ length: 8 }, (_, i): [number, number] => [i * 2000, i * 2000 + 2000]).filter(() => random.below(3) > 0));
    const lines = [lane(), lane()];
    const end = Math.max(...lines.map((one) => one.end));
    let at = 0;
    for (let n = 0; at < end && n < 400; n++) {
      const next = playing(at, lines, random.below(2) === 0, random.below(2) === 0);
      const before = at;
      if (next.what === "go") at += 100;
      if (next.what === "jump") at = next.to;
      const later = lines.some((one) => one.after(at) || one.at(at));
      if (next.what === "wait") assert.ok(!later || before >= (lines.find((one) => one.spans.length)?.end ?? 0), `stands at ${at}`);
      else assert.ok(at > before, `back from ${before} to ${at}`);
      if (next.what === "wait") break;
    }
  });
});

test("the timeline keeps time, and long pauses short", () => {
  const axis = new Axis([{ started: 0, ended: 2000 }, { started: 2000, ended: 4000 }, { started: 3_600_000, ended: 3_602_000 }]);
  assert.deepEqual([axis.place(0), axis.place(3000), axis.place(3_600_000), axis.length], [0, 3000, 10_000, 12_000]);
  assert.deepEqual([axis.time(3000), axis.time(10_500), axis.start, axis.end], [3000, 3_600_500, 0, 3_602_000]);
  assert.equal(new Axis([]).length, 0);
});

test("the newest is the one that came last in the recording's order, whatever its time is", () => {
  const sound = line([10_000, 12_000], [12_000, 14_000]);
  sound.add({ start: 4000, end: 6000, key: "new" }, true);
  assert.deepEqual(playing(13_900, [sound]), { what: "jump", to: 4000, over: -9900, why: "live" });
  assert.equal(playing(4000, [sound]).what, "go");
  assert.deepEqual(playing(6000, [sound]), { what: "wait" }, "not on into what is older");
  assert.equal(liveStart([sound]), 4000);
  assert.deepEqual(playing(6000, [sound], false), { what: "jump", to: 10_000, over: 4000, why: "gap" }, "who looks back sees all");
  // Sound goes on where the picture stopped: that is ahead of nothing.
  const ahead = line([0, 2000], [2000, 4000], [4000, 6000], [6000, 8000]);
  assert.equal(playing(7000, [line([0, 2000]), ahead]).what, "go");
});

test("of a span what the browser still has counts, and small differences at its ends do not", () => {
  const sound = line([0, 2000], [2000, 4000], [4000, 6000]);
  sound.keep([{ start: 1000, end: 3980 }, { start: 4030, end: 4900 }, { start: 5500, end: 6000 }]);
  assert.deepEqual(sound.spans.map(({ start, end }) => [start, end]), [[1000, 2000], [2000, 4000], [4000, 4900]]);
  sound.keep([]);
  assert.equal(sound.spans.length, 0);
});

test("what goes first is far from the playhead", () => {
  const sound = line(...Array.from({ length: 60 }, (_, i): [number, number] => [i * 1000, i * 1000 + 1000]));
  assert.deepEqual(farthest(sound, 55_000), { start: 0, end: 22_500 });
  assert.deepEqual(farthest(sound, 5000), { start: 37_500, end: 60_000 });
  assert.equal(farthest(line([0, 8000]), 4000), null);
  forAll(200, (random) => {
    const at = random.below(60_000);
    const gone = farthest(sound, at);
    assert.ok(gone && (gone.end <= at - 9999 || gone.start >= at + 9999) && gone.end > gone.start, `${at}: ${JSON.stringify(gone)}`);
  });
});

test("without Media Source what is farthest from the playhead is freed, not what somebody went back to", () => {
  const freed: number[] = [];
  const pieces = new Pieces<number>(new Line(), (n) => freed.push(n), 5);
  const add = (n: number): void => pieces.add({ key: String(n), started: n * 2000, newest: true }, 2000, n);
  for (let n = 0; n < 7; n++) add(n);
  assert.deepEqual(freed, [0, 1], "at the edge the oldest");
  pieces.at = 4500;
  add(1);
  assert.deepEqual([freed, pieces.list.map(({ data }) => data), !!pieces.line.at(2500)], [[0, 1, 6], [1, 2, 3, 4, 5], true]);
  add(1);
  assert.deepEqual(freed, [0, 1, 6, 1], "the same once more takes the place of the one before");
});
