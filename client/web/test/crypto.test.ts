import assert from "node:assert/strict";
import { test } from "node:test";
import vectors from "../../testdata/vectors.json";
import { hex, joined, toBase64url, utf8 } from "../src/rules/bytes";
import { readEnvelope, streamKeyInfo } from "../src/rules/envelope";
import { isOf, lifeOf, readKeys, readReceipt } from "../src/rules/receipt";
import { open, setKey, verify, verifySignature } from "../src/io/crypto";
import { forAll, Random } from "./random";

const bytes = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(text, "hex"));
interface Sealed { frame_hex: string; identity: Named; test_only_cek_hex: string; test_only_plaintext: string }
interface Named { incident_id: string; stream_id: string; media_type: string; chunk_index: number }
const identity = (of: Named) => ({ incident: of.incident_id, stream: of.stream_id, media: of.media_type, index: of.chunk_index });

test("headers are read as the core has them", () => {
  const frames = vectors.pq_payload_frame.frames;
  assert.ok(frames.length > 0);
  for (const vector of frames) {
    const envelope = readEnvelope(bytes(vector.frame_hex), identity(vector.identity));
    assert.ok(envelope, vector.name);
    assert.equal(hex(envelope.header), vector.header_hex);
    assert.equal(hex(envelope.nonce), vector.payload_nonce_hex);
    assert.equal(hex(envelope.body), vector.ciphertext_hex);
  }
});

test("what the core refuses is refused", () => {
  assert.equal(vectors.pq_payload_frame.rejected.length, 13);
  for (const vector of vectors.pq_payload_frame.rejected) {
    assert.equal(readEnvelope(bytes(vector.frame_hex), identity(vector.identity)), null, vector.name);
  }
});

test("the vector with a real body opens", async () => {
  const vector = vectors.pq_payload_frame.frames.find((one) => "test_only_cek_hex" in one && one.test_only_cek_hex) as unknown as Sealed;
  const envelope = readEnvelope(bytes(vector.frame_hex), identity(vector.identity));
  assert.ok(envelope);
  const key = await crypto.subtle.importKey("raw", bytes(vector.test_only_cek_hex), "AES-GCM", false, ["decrypt"]);
  const parameters = { name: "AES-GCM", iv: envelope.nonce as BufferSource, additionalData: envelope.header as BufferSource };
  const plain = await crypto.subtle.decrypt(parameters, key, envelope.body as BufferSource);
  assert.equal(Buffer.from(plain).toString(), vector.test_only_plaintext);
});

test("a stream's key is what the Rust client derives", async () => {
  const group = await crypto.subtle.importKey("raw", new Uint8Array(32).fill(42), "HKDF", false, ["deriveBits"]);
  const how = { name: "HKDF", hash: "SHA-384", salt: new Uint8Array(0), info: streamKeyInfo("stream_1") };
  const key = new Uint8Array(await crypto.subtle.deriveBits(how, group, 256));
  assert.equal(hex(key), "c79051c48886db0e886bbbe5539e99d7f59ca6188a2996016d25ae22d9e6565b");
});

const SCHEME: [string, string][] = [["scheme", "proofline-pq-envelope-v1"], ["suite_id", "proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1"], ["digest", "SHA-384"]];

/** Seals as the capture client does. */
async function seal(groupKey: Uint8Array<ArrayBuffer>, of: { incident: string; stream: string; media: string; index: number }, plaintext: Uint8Array<ArrayBuffer>, random: Random) {
  const nonce = random.bytes(12);
  const fields: [string, Uint8Array][] = [
    ...SCHEME.map(([name, value]): [string, Uint8Array] => [name, utf8(value)]), ["envelope_id", utf8("e")], ["incident_id", utf8(of.incident)],
    ["stream_id", utf8(of.stream)], ["media_type", utf8(of.media)], ["chunk_index", utf8(String(of.index))], ["payload_type", utf8("chunk")],
    ["payload_aead", utf8("AES-256-GCM")], ["payload_nonce", nonce],
  ];
  const header = joined(fields.flatMap(([name, value]) => {
    const sizes = new Uint8Array(2 + name.length + 4);
    new DataView(sizes.buffer).setUint16(0, name.length);
    sizes.set(utf8(name), 2);
    new DataView(sizes.buffer).setUint32(2 + name.length, value.length);
    return [sizes, value];
  }));
  const group = await crypto.subtle.importKey("raw", groupKey.slice(), "HKDF", false, ["deriveKey"]);
  const how = { name: "HKDF", hash: "SHA-384", salt: new Uint8Array(0), info: streamKeyInfo(of.stream) };
  const key = await crypto.subtle.deriveKey(how, group, { name: "AES-GCM", length: 256 }, false, ["encrypt"]);
  const body = new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv: nonce, additionalData: header }, key, plaintext));
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, header.length);
  const frame = joined([utf8("PLPQENC1\n\x01"), length, header, body]);
  return { frame, sha256: hex(new Uint8Array(await crypto.subtle.digest("SHA-256", frame))) };
}

test("a chunk opens only as what it was sealed, where it was sealed", async () => {
  for (let seed = 1; seed < 30; seed++) {
    const random = new Random(seed);
    const key = random.bytes(32);
    const plaintext = random.bytes(1 + random.below(3000));
    const of = { incident: "i", stream: "s", media: "audio", index: 1 + random.below(1000) };
    const { frame, sha256 } = await seal(key, of, plaintext, random);
    const order = { order: "open" as const, identity: of, sha256, bytes: frame };
    await setKey(key.slice());
    assert.deepEqual((await open(order)).plaintext, plaintext);
    assert.deepEqual(await open({ ...order, sha256: "00".repeat(32) }), { bad: "hash_mismatch" });
    const other = random.of([{ ...of, index: of.index + 1 }, { ...of, stream: "t" }, { ...of, incident: "j" }, { ...of, media: "video" }]);
    assert.deepEqual(await open({ ...order, identity: other }), { bad: "sealed" });
    const bad = frame.slice();
    const at = random.below(bad.length);
    bad[at] = (bad[at] as number) ^ 1;
    assert.deepEqual(await open({ ...order, bytes: bad }), { bad: "hash_mismatch" });
    const digest = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bad)));
    assert.deepEqual(await open({ ...order, bytes: bad, sha256: digest }), { bad: "sealed" });
    await setKey(random.bytes(32));
    assert.deepEqual(await open(order), { bad: "sealed" });
  }
});

test("no bytes make the reader do anything but refuse", () => {
  const magic = utf8("PLPQENC1\n\x01");
  forAll(500, (random) => {
    const frame = joined([magic, random.bytes(random.below(300))]);
    assert.equal(readEnvelope(frame, { incident: "i", stream: "s", media: "audio", index: 1 }), null);
  });
});

const says = { incident: "i", stream: "s", index: 3, length: 9, sha256: "00".repeat(32) };

async function core(kid: string) {
  const pair = (await crypto.subtle.generateKey({ name: "Ed25519" }, true, ["sign", "verify"])) as CryptoKeyPair;
  const jwk = await crypto.subtle.exportKey("jwk", pair.publicKey);
  const issue = async (payload: object, head: object = {}): Promise<string> => {
    const header = { typ: "waystation-receipt+jwt", alg: "Ed25519", kid, ...head };
    const signed = [header, payload].map((part) => toBase64url(utf8(JSON.stringify(part)))).join(".");
    const signature = await crypto.subtle.sign({ name: "Ed25519" }, pair.privateKey, utf8(signed));
    return `${signed}.${toBase64url(new Uint8Array(signature))}`;
  };
  return { issue, keys: readKeys({ keys: [{ kty: "RSA", kid: "rsa" }, { ...jwk, kid }] }) };
}

test("only the core's signature over exactly this chunk counts", async () => {
  const [ours, other] = [await core("k1"), await core("k1")];
  assert.equal(ours.keys.length, 1);
  const good = await ours.issue({ iss: "core", iat: 1, ...says });
  assert.equal(await verify(good, says, ours.keys), "verified");
  assert.equal(await verify(good, says, other.keys), "invalid");
  assert.equal(await verify(good, says, []), "unknown_key");
  for (const change of [{ incident: "j" }, { stream: "t" }, { index: 4 }, { length: 8 }, { sha256: "11".repeat(32) }]) {
    assert.equal(await verify(good, { ...says, ...change }, ours.keys), "invalid", JSON.stringify(change));
  }
  assert.equal(await verify(await ours.issue(says, { typ: "JWT" }), says, ours.keys), "invalid");
  assert.equal(await verify(await ours.issue(says, { alg: "none" }), says, ours.keys), "invalid");
  const [head, payload, signature] = good.split(".") as [string, string, string];
  const forged = toBase64url(utf8(JSON.stringify({ ...says, index: 4 })));
  assert.equal(await verify(`${head}.${forged}.${signature}`, { ...says, index: 4 }, ours.keys), "invalid");
  assert.equal(await verify(`${head}.${payload}`, says, ours.keys), "invalid");
});

test("browsers without Ed25519 come to the same verdict", async () => {
  const { issue, keys } = await core("k");
  const receipt = readReceipt(await issue(says));
  const key = keys[0]?.key;
  assert.ok(receipt && key && isOf(receipt.says, says));
  for (const own of [true, false]) {
    assert.equal(await verifySignature(receipt.signature, receipt.signed, key, own), true);
    const bad = receipt.signature.slice();
    bad[5] = (bad[5] as number) ^ 1;
    assert.equal(await verifySignature(bad, receipt.signed, key, own), false);
  }
});

test("a capability says how long it lives", () => {
  const token = (claims: object): string => `x.${toBase64url(utf8(JSON.stringify(claims)))}.y`;
  assert.deepEqual(lifeOf(token({ iat: 1_800_000_000, exp: 1_800_000_300 })), { lifeMs: 300_000, issuedAt: 1_800_000_000_000 });
  assert.deepEqual(lifeOf(token({ iat: 100, exp: 400 })), { lifeMs: 300_000 }, "no core's clock says that");
  for (const text of [token({ exp: 4 }), token({ iat: 5, exp: 4 }), "x", "x.!.y", ""]) assert.deepEqual(lifeOf(text), {});
});
