import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Axis } from "../src/rules/axis";
import { readMedia, rebased } from "../src/rules/mp4";
import { Line, liveStart, step } from "../src/rules/place";
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
  for (const [start, end] of spans) out.add({ start, end });
  return out;
};

test("chunks that nearly touch are joined, others lie where their time says", () => {
  const sound = line([0, 2016]);
  assert.deepEqual(sound.place(2000, 1984), { start: 2016, end: 4000, limit: Infinity });
  assert.equal(sound.place(2090, 2000).start, 2016);
  assert.equal(sound.place(2500, 2000).start, 2500);
  assert.equal(sound.place(1000, 2000).start, 2016, "never over what is there");
});

test("a late chunk does not cut into the one after it", () => {
  const picture = line([0, 2000], [4000, 6000]);
  assert.deepEqual(picture.place(2000, 2066), { start: 2000, end: 4000, limit: 4000 });
});

test("a lane in any order is a line without overlaps, each chunk near its time", () => {
  forAll(300, (random) => {
    const times = Array.from({ length: 12 }, (_, i) => i * 2000);
    const lane = new Line();
    while (times.length) {
      const started = times.splice(random.below(times.length), 1)[0] as number;
      // An encoder cuts at whole frames: a little late, then a little early.
      const place = lane.place(started, (started / 2000) % 2 ? 1984 : 2016);
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

const playing = (at: number, lines: Line[], live = true, growing = true) => step({ at, lines, live, growing });

test("at the edge it follows within two chunks, and hurries a little before it jumps", () => {
  const sound = line([0, 2000], [2000, 4000], [4000, 6000], [6000, 8000]);
  assert.deepEqual(playing(5500, [sound]), { what: "go", rate: 1 });
  assert.deepEqual(playing(4200, [sound]), { what: "go", rate: 1.06 });
  assert.deepEqual(playing(1000, [sound]), { what: "jump", to: 5500, over: 4500, why: "live" });
  assert.deepEqual(playing(1000, [sound], false), { what: "go", rate: 1 }, "who looks back is left alone");
  assert.deepEqual(playing(1000, [sound], true, false), { what: "go", rate: 1 }, "nothing more comes: the rest is played");
  assert.deepEqual(playing(8000, [sound]), { what: "wait" });
  assert.equal(liveStart([sound]), 5500);
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
