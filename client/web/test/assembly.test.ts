import assert from "node:assert/strict";
import { test } from "node:test";
import { Assembly, type Happening } from "../src/rules/assembly";
import { joined, toVarint } from "../src/rules/bytes";
import { control, type Frame, kind, ProtocolError, splitMessage } from "../src/rules/frames";
import { forAll } from "./random";

const chunk = (handle: number, length: number, more: object = {}): Frame[] =>
  splitMessage(control(kind.CHUNK, {
    handle, stream: "s", variant: "audio_priority", media: "audio", index: handle, length, sha256: "00", started: "2026-01-01T00:00:00Z",
    ended: "2026-01-01T00:00:02Z", state: "arriving", replay: false, ...more,
  }));
const piece = (handle: number, offset: number, bytes: Uint8Array): Frame[] => {
  const body = joined([toVarint(handle), toVarint(offset), bytes]);
  return splitMessage(joined([toVarint(kind.PIECE), toVarint(body.length), body]));
};
const told = (type: number, value: object): Frame[] => splitMessage(control(type, value));
const run = (assembly: Assembly, ...frames: Frame[][]): Happening[] => frames.flat().flatMap((frame) => assembly.take(frame) ?? []);

test("chunks come whole in any cut, interleaved", () => {
  forAll(200, (random) => {
    const assembly = new Assembly(() => true);
    const bodies = [random.bytes(1 + random.below(500)), random.bytes(1 + random.below(500))];
    const at = [0, 0];
    const whole: Uint8Array[] = [];
    run(assembly, ...bodies.map((body, i) => chunk(i + 1, body.length)));
    while (at.some((have, i) => have < (bodies[i] as Uint8Array).length)) {
      const i = random.below(2);
      const body = bodies[i] as Uint8Array;
      const from = Math.max(0, (at[i] as number) - random.below(20));
      const to = Math.min(body.length, (at[i] as number) + random.below(90));
      run(assembly, piece(i + 1, from, body.subarray(from, Math.max(from, to))));
      at[i] = Math.max(at[i] as number, to);
    }
    for (const news of run(assembly, told(kind.COMPLETE, { handle: 2 }), told(kind.COMPLETE, { handle: 1 }))) {
      if (news.what === "whole") whole.push(news.bytes);
    }
    assert.deepEqual(whole, [bodies[1], bodies[0]]);
  });
});

test("a hole, too many bytes or too few: torn, and never whole", () => {
  for (const frames of [[piece(1, 1, Uint8Array.of(1))], [piece(1, 0, new Uint8Array(5))], [piece(1, 0, Uint8Array.of(1))]]) {
    const news = run(new Assembly(() => true), chunk(1, 4), ...frames, told(kind.COMPLETE, { handle: 1 }));
    assert.ok(news.some(({ what }) => what === "torn"));
    assert.ok(!news.some(({ what }) => what === "whole"));
  }
});

test("bytes that are not wanted are not kept", () => {
  const news = run(new Assembly(() => false), chunk(1, 4), piece(1, 0, new Uint8Array(4)), told(kind.COMPLETE, { handle: 1 }));
  assert.deepEqual(news.map(({ what }) => what), ["begins"]);
});

test("what is withdrawn is dropped, also before its chunk comes", () => {
  const withdrawn = told(kind.WITHDRAWN, { handle: 1, reason: "stalled" });
  const complete = told(kind.COMPLETE, { handle: 1 });
  const news = run(new Assembly(() => true), chunk(1, 1), piece(1, 0, Uint8Array.of(1)), withdrawn, complete);
  assert.deepEqual(news.map(({ what }) => what), ["begins", "progress", "withdrawn"]);
  assert.deepEqual(run(new Assembly(() => true), withdrawn, chunk(1, 1), piece(1, 0, Uint8Array.of(1)), complete), []);
});

test("only the two lanes are shown, unknown frames skipped, and bounds kept", () => {
  const assembly = new Assembly(() => true);
  assert.deepEqual(run(assembly, chunk(1, 1, { variant: "evidence_master" }), told(0x7f, {})), []);
  assert.throws(() => run(assembly, told(kind.OMITTED, { stream: "s", from: 3, to: 2, reason: "slow" })), ProtocolError);
  const many = run(assembly, ...Array.from({ length: 70 }, (_, i) => chunk(i + 1, 1)));
  assert.equal(many.filter(({ what }) => what === "torn").length, 6);
  const large = run(new Assembly(() => true), chunk(1, 2 ** 40), piece(1, 0, Uint8Array.of(1)));
  assert.deepEqual(large.map(({ what }) => what), ["begins"]);
});
