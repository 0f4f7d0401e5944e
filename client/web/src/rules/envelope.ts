// `PLPQENC1` frames: what a sealed chunk is. Reads the header as client/src/envelope.rs does. Pure.

import { fromUtf8, joined, prefixed, utf8 } from "./bytes";

const PREFIX = utf8("PLPQENC1\n\x01");
const MAX_HEADER = 16_384;
const FIELDS = [
  "scheme", "suite_id", "digest", "envelope_id", "incident_id", "stream_id", "media_type", "chunk_index", "payload_type",
  "payload_aead", "payload_nonce",
];
const FIXED: Record<string, string> = {
  scheme: "proofline-pq-envelope-v1",
  suite_id: "proofline-pq-mlkem768-hkdfsha384-aes256gcm-v1",
  digest: "SHA-384",
  payload_type: "chunk",
  payload_aead: "AES-256-GCM",
};

export interface Identity {
  incident: string;
  stream: string;
  media: string;
  index: number;
}

export interface Envelope {
  nonce: Uint8Array;
  /** The associated data. */
  header: Uint8Array;
  /** Ciphertext and tag. */
  body: Uint8Array;
}

/** Takes a frame of this chunk apart; `null` if it is none, or another chunk's. Proves nothing. */
export function readEnvelope(frame: Uint8Array, of: Identity): Envelope | null {
  if (frame.length < PREFIX.length + 4 || !PREFIX.every((byte, i) => frame[i] === byte)) return null;
  const length = u32(frame, PREFIX.length);
  const start = PREFIX.length + 4;
  if (length === 0 || length > MAX_HEADER || frame.length <= start + length) return null;
  const header = frame.subarray(start, start + length);
  const values = readFields(header);
  if (!values) return null;
  const text = (name: string): string | null => fromUtf8(values[name] as Uint8Array);
  const names: Record<string, string> = {
    ...FIXED, incident_id: of.incident, stream_id: of.stream, media_type: of.media, chunk_index: String(of.index),
  };
  const nonce = values["payload_nonce"] as Uint8Array;
  if (of.index < 1 || nonce.length !== 12 || text("envelope_id") === null) return null;
  if (Object.keys(names).some((name) => text(name) !== names[name])) return null;
  return { nonce, header, body: frame.subarray(start + length) };
}

/** Info of a stream's key: HKDF-SHA384 over the group key, without salt. */
export const streamKeyInfo = (stream: string): Uint8Array<ArrayBuffer> =>
  joined([prefixed("waystation-stream-key-v1"), prefixed(stream)]);

function readFields(header: Uint8Array): Record<string, Uint8Array> | null {
  const values: Record<string, Uint8Array> = {};
  let at = 0;
  for (const name of FIELDS) {
    const nameEnd = at + 2 + u16(header, at);
    if (nameEnd + 4 > header.length || fromUtf8(header.subarray(at + 2, nameEnd)) !== name) return null;
    const end = nameEnd + 4 + u32(header, nameEnd);
    if (end > header.length) return null;
    values[name] = header.subarray(nameEnd + 4, end);
    at = end;
  }
  return at === header.length ? values : null;
}

const u16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
const u32 = (bytes: Uint8Array, at: number): number => u16(bytes, at) * 65_536 + u16(bytes, at + 2);
