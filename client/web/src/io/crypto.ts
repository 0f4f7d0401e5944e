// WebCrypto: what the worker does. Runs in Node too, for its tests.

import { verifyAsync } from "@noble/ed25519";
import { hex } from "../rules/bytes";
import { type Identity, readEnvelope, streamKeyInfo } from "../rules/envelope";
import { type CoreKey, isOf, readReceipt, type ReceiptSays } from "../rules/receipt";

export interface OpenOrder {
  order: "open";
  identity: Identity;
  sha256: string;
  bytes: Uint8Array<ArrayBuffer>;
}

export type Order =
  | { order: "key"; key: Uint8Array<ArrayBuffer> }
  | OpenOrder
  | { order: "verify"; receipt: string; of: ReceiptSays; keys: CoreKey[] };

export interface Opened {
  plaintext?: Uint8Array<ArrayBuffer>;
  /** Why it does not open: other bytes than the digest's, or not what the phone sealed for this place; or too much waits before it. */
  bad?: "hash_mismatch" | "sealed" | "busy";
}

/** What a receipt proves. `unknown_key`: the core's keys are to be asked for again. */
export type Verified = "verified" | "unknown_key" | "invalid";

const MAX_STREAM_KEYS = 256;
let groupKey: CryptoKey | null = null;
const streamKeys = new Map<string, Promise<CryptoKey>>();

export async function setKey(raw: Uint8Array<ArrayBuffer>): Promise<void> {
  streamKeys.clear();
  groupKey = await crypto.subtle.importKey("raw", raw, "HKDF", false, ["deriveKey"]);
  raw.fill(0);
}

export async function open({ identity, sha256, bytes }: OpenOrder): Promise<Opened> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (hex(digest) !== sha256) return { bad: "hash_mismatch" };
  const envelope = readEnvelope(bytes, identity);
  if (!envelope) return { bad: "sealed" };
  const key = await streamKey(identity.stream);
  try {
    const parameters = { name: "AES-GCM", iv: envelope.nonce as BufferSource, additionalData: envelope.header as BufferSource };
    return { plaintext: new Uint8Array(await crypto.subtle.decrypt(parameters, key, envelope.body as BufferSource)) };
  } catch {
    return { bad: "sealed" };
  }
}

function streamKey(stream: string): Promise<CryptoKey> {
  const known = streamKeys.get(stream);
  if (known) return known;
  if (!groupKey) return Promise.reject(new Error("no key"));
  if (streamKeys.size >= MAX_STREAM_KEYS) streamKeys.clear();
  const parameters = { name: "HKDF", hash: "SHA-384", salt: new Uint8Array(0), info: streamKeyInfo(stream) };
  const made = crypto.subtle.deriveKey(parameters, groupKey, { name: "AES-GCM", length: 256 }, false, ["decrypt"]);
  streamKeys.set(stream, made);
  return made;
}

export async function verify(text: string, of: ReceiptSays, keys: CoreKey[]): Promise<Verified> {
  const receipt = readReceipt(text);
  if (!receipt || !isOf(receipt.says, of)) return "invalid";
  const key = keys.find((one) => one.kid === receipt.kid);
  if (!key) return "unknown_key";
  return (await verifySignature(receipt.signature, receipt.signed, key.key)) ? "verified" : "invalid";
}

/** The browser's Ed25519, where it has one. */
export async function verifySignature(signature: Uint8Array<ArrayBuffer>, signed: Uint8Array<ArrayBuffer>, key: Uint8Array<ArrayBuffer>, own = true): Promise<boolean> {
  if (own) {
    let native: CryptoKey | undefined;
    try {
      native = await crypto.subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
    } catch {
      // This browser has none.
    }
    if (native) return crypto.subtle.verify({ name: "Ed25519" }, native, signature, signed);
  }
  try {
    return await verifyAsync(signature, signed, key, { zip215: false });
  } catch {
    return false;
  }
}
