// Frames of `/watch` (docs/protocol.md, 7). Pure.

import { joined, jsonObject, toVarint, utf8, varint } from "./bytes";

export const kind = {
  WATCH: 0x21, RENEW: 0x22, LANES: 0x23, FETCH: 0x24,
  WATCHING: 0x31, CHUNK: 0x32, PIECE: 0x33, COMPLETE: 0x34, WITHDRAWN: 0x35, STATE: 0x36, OMITTED: 0x37,
  CAPTURE: 0x38, STREAM: 0x39, ENDING: 0x3a, CURSOR: 0x3b, SIGN: 0x3c,
} as const;

const MAX_CONTROL = 65_536;
const MAX_PIECE = 262_160;
/** Identifiers are at most this long (docs/protocol.md); so is what else is short. */
const MAX_NAME = 200;
/** Far beyond any recording. */
const MAX_INDEX = 2 ** 32;

export interface Frame {
  kind: number;
  body: Uint8Array;
}

/** The other side does not speak this protocol: the connection is to be closed. */
export class ProtocolError extends Error {}

/** Takes whole frames out of bytes that are cut anywhere. */
export class Decoder {
  private held: Uint8Array = new Uint8Array(0);

  push(bytes: Uint8Array): Frame[] {
    const all = this.held.length ? joined([this.held, bytes]) : bytes;
    const frames: Frame[] = [];
    let at = 0;
    for (;;) {
      const type = varint(all, at);
      const length = type && varint(all, type[1]);
      if (!type || !length) break;
      if (length[0] > (type[0] === kind.PIECE ? MAX_PIECE : MAX_CONTROL)) throw new ProtocolError();
      const end = length[1] + length[0];
      if (end > all.length) break;
      frames.push({ kind: type[0], body: all.subarray(length[1], end) });
      at = end;
    }
    this.held = all.slice(at);
    return frames;
  }

  /** Bytes of a frame that is not whole yet. */
  get waiting(): number {
    return this.held.length;
  }

  /** Whether it stands between two frames. */
  get whole(): boolean {
    return this.held.length === 0;
  }
}

/** Frames of one WebSocket message, which holds whole ones. */
export function splitMessage(bytes: Uint8Array): Frame[] {
  const decoder = new Decoder();
  const frames = decoder.push(bytes);
  if (!decoder.whole) throw new ProtocolError();
  return frames;
}

/** A control frame. */
export function control(type: number, value: object): Uint8Array<ArrayBuffer> {
  const body = utf8(JSON.stringify(value));
  return joined([toVarint(type), toVarint(body.length), body]);
}

export interface PieceBody {
  handle: number;
  offset: number;
  bytes: Uint8Array;
}

export function readPiece(body: Uint8Array): PieceBody {
  const handle = varint(body, 0);
  const offset = handle && varint(body, handle[1]);
  if (!handle || !offset) throw new ProtocolError();
  return { handle: handle[0], offset: offset[0], bytes: body.subarray(offset[1]) };
}

/** Members of a control body, read with the type they must have. */
export class Members {
  private readonly value: Record<string, unknown>;

  constructor(body: Uint8Array) {
    const value = jsonObject(body);
    if (!value) throw new ProtocolError();
    this.value = value;
  }

  text(name: string, most = MAX_NAME): string {
    const value = this.value[name];
    if (typeof value !== "string" || value.length > most) throw new ProtocolError();
    return value;
  }

  maybeText(name: string): string | undefined {
    const value = this.value[name];
    return typeof value === "string" ? value : undefined;
  }

  count(name: string): number {
    const value = this.value[name];
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) throw new ProtocolError();
    return value;
  }

  /** A chunk's place in its stream. */
  index(name: string): number {
    const value = this.count(name);
    if (value < 1 || value > MAX_INDEX) throw new ProtocolError();
    return value;
  }

  flag(name: string): boolean {
    return this.value[name] === true;
  }

  /** RFC 3339, as milliseconds since the Unix epoch. */
  time(name: string): number {
    const at = Date.parse(this.text(name));
    if (Number.isNaN(at)) throw new ProtocolError();
    return at;
  }

  maybeTime(name: string): number | undefined {
    return this.maybeText(name) === undefined ? undefined : this.time(name);
  }

  object(name: string): Record<string, unknown> | undefined {
    const value = this.value[name];
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  }
}
