// Receipts of the core (docs/protocol.md, 8): a compact JWS. What is signed, and what it says. Pure.

import { fromBase64url, fromUtf8, jsonObject, utf8 } from "./bytes";

const MAX_BYTES = 2048;

export interface SignedReceipt {
  kid: string;
  signed: Uint8Array<ArrayBuffer>;
  signature: Uint8Array<ArrayBuffer>;
  says: ReceiptSays;
}

export interface ReceiptSays {
  incident: string;
  stream: string;
  index: number;
  length: number;
  sha256: string;
}

/** A public key of the core. */
export interface CoreKey {
  kid: string;
  key: Uint8Array<ArrayBuffer>;
}

/** Reads a receipt; `null` if it is none. The signature is not checked here. */
export function readReceipt(text: string): SignedReceipt | null {
  const parts = text.split(".");
  if (text.length > MAX_BYTES || parts.length !== 3) return null;
  const [head, payload, signature] = parts.map(fromBase64url);
  const header = head && jsonObject(head);
  const says = payload && jsonObject(payload);
  if (!header || !says || signature?.length !== 64) return null;
  if (header["typ"] !== "waystation-receipt+jwt" || !["Ed25519", "EdDSA"].includes(String(header["alg"]))) return null;
  const { incident, stream, index, length, sha256 } = says;
  if (typeof header["kid"] !== "string" || typeof incident !== "string" || typeof stream !== "string") return null;
  if (typeof index !== "number" || typeof length !== "number" || typeof sha256 !== "string") return null;
  return {
    kid: header["kid"], signed: utf8(`${parts[0]}.${parts[1]}`), signature, says: { incident, stream, index, length, sha256 },
  };
}

/** Whether it speaks of exactly these bytes. */
export const isOf = (says: ReceiptSays, of: ReceiptSays): boolean =>
  says.incident === of.incident && says.stream === of.stream && says.index === of.index && says.length === of.length &&
  says.sha256 === of.sha256;

/** The Ed25519 keys of a JWKS; others are ignored. */
export function readKeys(jwks: unknown): CoreKey[] {
  const keys = (jwks as { keys?: unknown } | null)?.keys;
  if (!Array.isArray(keys)) return [];
  return keys.slice(0, 64).flatMap((value: unknown) => {
    const { kty, crv, kid, x } = (value ?? {}) as Record<string, unknown>;
    const key = typeof x === "string" ? fromBase64url(x) : null;
    return kty === "OKP" && crv === "Ed25519" && typeof kid === "string" && key?.length === 32 ? [{ kid, key }] : [];
  });
}

/** Before this there was no core: a clock that says so says nothing. */
const FIRST_S = 1_500_000_000;

/** How long a capability lives and when it was given, in milliseconds, by its own claims, as far as it says. */
export function lifeOf(capability: string): { lifeMs?: number; issuedAt?: number } {
  const payload = fromBase64url(capability.split(".")[1] ?? "");
  const claims = payload && fromUtf8(payload) !== null ? jsonObject(payload) : null;
  const [iat, exp] = [claims?.["iat"], claims?.["exp"]];
  if (typeof iat !== "number" || typeof exp !== "number" || !(exp > iat)) return {};
  return { lifeMs: (exp - iat) * 1000, ...(iat >= FIRST_S ? { issuedAt: iat * 1000 } : {}) };
}
