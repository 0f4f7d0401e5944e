import assert from "node:assert/strict";
import { test } from "node:test";
import { fromBase64url, joined, toBase64url, toVarint, utf8, varint } from "../src/rules/bytes";
import { control, Decoder, kind, Members, ProtocolError, readPiece, splitMessage } from "../src/rules/frames";
import { forAll } from "./random";

test("varints are those of RFC 9000", () => {
  const known: [number, string][] = [[494878333, "9d7f3e7d"], [15293, "7bbd"], [37, "25"]];
  for (const [value, hex] of known) {
    const bytes = Uint8Array.from(Buffer.from(hex, "hex"));
    assert.deepEqual(varint(bytes, 0), [value, bytes.length]);
    assert.deepEqual(toVarint(value), bytes);
  }
  forAll(500, (random) => {
    const value = Math.floor(random.next() * 2 ** random.below(53));
    const bytes = toVarint(value);
    assert.deepEqual(varint(bytes, 0), [value, bytes.length]);
    assert.equal(varint(bytes.subarray(0, bytes.length - 1), 0), null);
  });
});

test("base64url goes both ways and refuses what it is not", () => {
  forAll(200, (random) => {
    const bytes = random.bytes(random.below(60));
    const text = toBase64url(bytes);
    assert.equal(text, Buffer.from(bytes).toString("base64url"));
    assert.deepEqual(fromBase64url(text), bytes);
  });
  for (const text of ["a", "a+b=", "ab c", "ä"]) assert.equal(fromBase64url(text), null);
});

test("frames come whole out of any cut", () => {
  forAll(200, (random) => {
    const sent = Array.from({ length: 1 + random.below(6) }, () => ({ kind: random.below(5000), body: random.bytes(random.below(400)) }));
    const wire = joined(sent.flatMap(({ kind: type, body }) => [toVarint(type), toVarint(body.length), body]));
    const decoder = new Decoder();
    const got = [];
    for (let at = 0; at < wire.length; ) {
      const end = Math.min(wire.length, at + 1 + random.below(90));
      got.push(...decoder.push(wire.subarray(at, end)).map(({ kind: type, body }) => ({ kind: type, body: body.slice() })));
      at = end;
    }
    assert.deepEqual(got, sent);
    assert.ok(decoder.whole);
  });
});

test("a length over the limit is refused before its bytes come", () => {
  const head = (type: number, length: number): Uint8Array => joined([toVarint(type), toVarint(length)]);
  assert.throws(() => new Decoder().push(head(kind.STATE, 65_537)), ProtocolError);
  assert.throws(() => new Decoder().push(head(kind.PIECE, 262_161)), ProtocolError);
  assert.deepEqual(new Decoder().push(head(kind.PIECE, 262_160)), []);
});

test("a message holds whole frames", () => {
  const frame = control(kind.SIGN, { last_sign: 7 });
  assert.equal(splitMessage(joined([frame, frame])).length, 2);
  assert.throws(() => splitMessage(frame.subarray(0, frame.length - 1)), ProtocolError);
});

test("control bodies are objects with the types they must have", () => {
  const members = (text: string): Members => new Members(utf8(text));
  for (const text of ["[]", "1", "null", "{", ""]) assert.throws(() => members(text), ProtocolError);
  for (const text of ['{"n":"1"}', '{"n":-1}', '{"n":1.5}', "{}"]) assert.throws(() => members(text).count("n"), ProtocolError);
  assert.equal(members('{"t":"2026-01-01T00:00:00.5Z"}').time("t"), Date.UTC(2026, 0, 1) + 500);
  assert.throws(() => members('{"t":"soon"}').time("t"), ProtocolError);
});

test("names and places are bounded", () => {
  const members = (value: object): Members => new Members(utf8(JSON.stringify(value)));
  assert.equal(members({ s: "a".repeat(200) }).text("s").length, 200);
  assert.throws(() => members({ s: "a".repeat(201) }).text("s"), ProtocolError);
  assert.equal(members({ n: 2 ** 32 }).index("n"), 2 ** 32);
  for (const n of [0, 2 ** 32 + 1, 2 ** 53 - 1]) assert.throws(() => members({ n }).index("n"), ProtocolError);
});

test("no bytes make the decoders do anything but refuse", () => {
  forAll(500, (random) => {
    try {
      for (const frame of new Decoder().push(random.bytes(random.below(200)))) {
        readPiece(frame.body);
      }
    } catch (error) {
      assert.ok(error instanceof ProtocolError);
    }
  });
});
