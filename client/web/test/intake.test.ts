import assert from "node:assert/strict";
import { test } from "node:test";
import { open, setKey, verify } from "../src/io/crypto";
import type { Core, Listed } from "../src/io/core";
import { Intake } from "../src/io/intake";
import type { Vault } from "../src/io/vault";
import type { Begins } from "../src/rules/assembly";
import { hex, toBase64url, utf8 } from "../src/rules/bytes";
import { Ledger, markOf } from "../src/rules/ledger";
import { type CoreKey } from "../src/rules/receipt";
import { type Facts, phoneOf } from "../src/rules/status";

/** What the worker does, without the worker. */
const vault = { open, verify } as unknown as Vault;
const begins = (index: number, more: Partial<Begins> = {}): Begins => ({
  stream: "a", index, lane: "audio", media: "audio", length: 10, sha256: "aa", started: 0, ended: 2000, state: "arriving", replay: false, ...more,
});

/** An intake, and a core of which only the keys are asked. */
function intake(keys: () => CoreKey[] = () => []): Intake {
  const facts: Facts = { watching: true, watched: true, admitted: true, coreAway: false, relayAway: false, anyChunk: false };
  const core = { keys: async () => keys() } as unknown as Core;
  const made = new Intake(facts, new Ledger(), vault, core, { show: () => undefined });
  made.incident = "incident";
  return made;
}

const pair = (await crypto.subtle.generateKey({ name: "Ed25519" }, true, ["sign", "verify"])) as CryptoKeyPair;
const key = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));

async function receipt(index: number, sha256: string): Promise<string> {
  const part = (value: object): string => toBase64url(utf8(JSON.stringify(value)));
  const head = part({ typ: "waystation-receipt+jwt", alg: "Ed25519", kid: "k" });
  const text = `${head}.${part({ incident: "incident", stream: "a", index, length: 10, sha256 })}`;
  return `${text}.${toBase64url(new Uint8Array(await crypto.subtle.sign({ name: "Ed25519" }, pair.privateKey, utf8(text))))}`;
}
const listed = (index: number, more: Partial<Listed> = {}): Listed => ({ ref: `r${index}`, chunk: begins(index), ...more });
const mark = (of: Intake, index: number): string => markOf(of.ledger.get("a", index) as never);

test("where the core signs, its list makes nothing safe that it did not sign", async () => {
  const made = intake(() => [{ kid: "k", key }]);
  for (const index of [1, 2, 3]) made.take({ what: "begins", chunk: begins(index) });
  await made.listed(listed(1));
  await made.listed(listed(2, { receipt: await receipt(2, "bb") }));
  await made.listed(listed(3, { receipt: await receipt(3, "aa") }));
  assert.deepEqual([1, 2, 3].map((index) => mark(made, index)), ["receiving", "receiving", "confirmed"]);
  assert.deepEqual([made.ledger.get("a", 3)?.proof, made.ledger.get("a", 1)?.ref], ["receipt", "r1"]);
  made.signsReceipts = false;
  await made.listed(listed(1));
  assert.equal(made.ledger.get("a", 1)?.proof, "core");
});

test("what could not be checked for want of keys is checked when they are here", async () => {
  let keys: CoreKey[] | null = null;
  const made = intake(() => {
    if (!keys) throw new Error("away");
    return keys;
  });
  made.take({ what: "begins", chunk: begins(1) });
  await made.listed(listed(1, { receipt: await receipt(1, "aa") }));
  assert.equal(mark(made, 1), "receiving");
  keys = [{ kid: "k", key }];
  // Keys are asked for again after a pause.
  while (mark(made, 1) !== "confirmed") {
    await new Promise((go) => setTimeout(go, 50));
    await made.prove();
  }
});

test("only what is new says that the phone is there, and the relay's word goes before it", () => {
  const made = intake();
  const phone = (): string => phoneOf(made.facts);
  made.take({ what: "begins", chunk: begins(1, { replay: true }) });
  made.take({ what: "progress", stream: "a", index: 1, received: 1, length: 10, replay: true });
  assert.equal(phone(), "unknown", "what was stored says nothing of now");
  made.take({ what: "begins", chunk: begins(2) });
  assert.equal(phone(), "live");
  made.take({ what: "sign", lastSign: 5 });
  made.take({ what: "progress", stream: "a", index: 2, received: 5, length: 10, replay: false });
  assert.equal(phone(), "quiet", "media comes later than the relay's word");
  made.take({ what: "capture", event: "silent", lastSign: 15 });
  assert.equal(phone(), "silent");
  made.greeted();
  assert.equal(phone(), "unknown", "on a new connection it is said anew");
  made.take({ what: "capture", event: "silent", lastSign: 30 });
  assert.equal(phone(), "silent");
  made.take({ what: "capture", event: "back", lastSign: 0 });
  assert.equal(phone(), "live");
});

test("bytes that do not open are refused, and never here", async () => {
  await setKey(new Uint8Array(32));
  const made = intake();
  const bytes = new Uint8Array(10);
  const sha256 = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
  for (const [index, digest] of [[1, "aa"], [2, sha256]] as const) {
    const chunk = begins(index, { sha256: digest });
    made.take({ what: "begins", chunk });
    made.take({ what: "whole", chunk, bytes: bytes.slice() });
  }
  while ([1, 2].some((index) => mark(made, index) === "receiving")) await new Promise((go) => setTimeout(go, 1));
  assert.deepEqual([1, 2].map((index) => [mark(made, index), made.ledger.get("a", index)?.why]), [["rejected", "hash_mismatch"], ["rejected", "sealed"]]);
});
