// From frames of one connection to chunks whose bytes are all here. Checks nothing of the bytes but their number: digest
// and seal are the worker's. Pure, and bounded in what may be arriving.

import { type Frame, Members, ProtocolError, kind, readPiece } from "./frames";

export type Lane = "audio" | "video";

/** What the relay says of a chunk before its bytes. */
export interface Begins {
  stream: string;
  index: number;
  lane: Lane;
  media: string;
  length: number;
  sha256: string;
  /** The recorded stretch, milliseconds since the Unix epoch, as the phone says. */
  started: number;
  ended: number;
  state: string;
  replay: boolean;
}

export type Happening =
  | { what: "watching"; windowStart?: number | undefined }
  | { what: "begins"; chunk: Begins }
  | { what: "progress"; stream: string; index: number; received: number; length: number; replay: boolean }
  | { what: "whole"; chunk: Begins; bytes: Uint8Array<ArrayBuffer> }
  | { what: "torn"; stream: string; index: number }
  | { what: "withdrawn"; stream: string; index: number; reason: string }
  | { what: "state"; stream: string; index: number; state: string; receipt?: string | undefined }
  | { what: "omitted"; stream: string; from: number; to: number; reason: string }
  | { what: "capture"; event: string; lastSign: number }
  | { what: "sign"; lastSign: number }
  | { what: "stream"; stream: string; lane: Lane; follows?: string | undefined }
  | { what: "cursor"; cursor: string }
  | { what: "ending"; reason: string };

/** Chunks that may be arriving at once. */
const MAX_ARRIVING = 64;
/** Bytes that may be arriving at once. */
const MAX_BYTES = 64 * 1024 * 1024;
/** Longest stretch that one chunk holds. */
const MAX_CHUNK_MS = 10 * 60_000;
const MAX_CURSOR_CHARS = 1024;

interface Arriving {
  chunk: Begins;
  have: number;
  /** `null`: not wanted. */
  bytes: Uint8Array<ArrayBuffer> | null;
}

export const laneOf = (variant: string): Lane | null =>
  variant === "audio_priority" ? "audio" : variant === "live_preview" ? "video" : null;

export class Assembly {
  private readonly arriving = new Map<number, Arriving>();
  /** Handles withdrawn before their chunk came: control may overtake media. */
  private readonly withdrawnEarly = new Set<number>();
  private buffered = 0;

  /** `wanted`: whether the bytes of this chunk are of use; they may be here already. */
  constructor(private readonly wanted: (chunk: Begins) => boolean) {}

  /** Takes one frame; `null`: nothing to tell. */
  take(frame: Frame): Happening | null {
    if (frame.kind === kind.PIECE) return this.piece(frame.body);
    const body = (): Members => new Members(frame.body);
    switch (frame.kind) {
      case kind.WATCHING: return { what: "watching", windowStart: body().maybeTime("window_start") };
      case kind.CHUNK: return this.begins(body());
      case kind.COMPLETE: return this.complete(body().count("handle"));
      case kind.WITHDRAWN: return this.withdrawn(body());
      case kind.STATE: return state(body());
      case kind.OMITTED: return omitted(body());
      case kind.CAPTURE: return capture(body());
      case kind.SIGN: return { what: "sign", lastSign: body().count("last_sign") };
      case kind.STREAM: return joins(body());
      case kind.CURSOR: return cursor(body());
      case kind.ENDING: return { what: "ending", reason: body().text("reason") };
      // A newer relay may say more.
      default: return null;
    }
  }

  private begins(body: Members): Happening | null {
    const lane = laneOf(body.text("variant"));
    if (!lane) return null;
    const started = body.time("started");
    // A clock that was set meanwhile makes no stretch that goes backwards, or for days.
    const ended = Math.min(Math.max(body.time("ended"), started), started + MAX_CHUNK_MS);
    const chunk: Begins = {
      stream: body.text("stream"), index: body.index("index"), lane, media: body.text("media"), length: body.count("length"),
      sha256: body.text("sha256"), started, ended, state: body.text("state"),
      replay: body.flag("replay"),
    };
    const handle = body.count("handle");
    this.forget(handle);
    if (this.withdrawnEarly.delete(handle)) return null;
    if (this.arriving.size >= MAX_ARRIVING) return { what: "torn", stream: chunk.stream, index: chunk.index };
    const fits = this.buffered + chunk.length <= MAX_BYTES;
    const bytes = fits && this.wanted(chunk) ? new Uint8Array(chunk.length) : null;
    this.buffered += bytes?.length ?? 0;
    this.arriving.set(handle, { chunk, have: 0, bytes });
    return { what: "begins", chunk };
  }

  private piece(body: Uint8Array): Happening | null {
    const piece = readPiece(body);
    const arriving = this.arriving.get(piece.handle);
    if (!arriving?.bytes) return null;
    const { chunk, bytes } = arriving;
    const end = piece.offset + piece.bytes.length;
    if (piece.offset > arriving.have || end > bytes.length) {
      this.drop(arriving);
      return { what: "torn", stream: chunk.stream, index: chunk.index };
    }
    if (end <= arriving.have) return null;
    bytes.set(piece.bytes, piece.offset);
    arriving.have = end;
    return { what: "progress", stream: chunk.stream, index: chunk.index, received: end, length: chunk.length, replay: chunk.replay };
  }

  private complete(handle: number): Happening | null {
    const arriving = this.arriving.get(handle);
    const bytes = arriving?.bytes;
    this.forget(handle);
    if (!arriving || !bytes) return null;
    const { chunk } = arriving;
    if (arriving.have !== chunk.length) return { what: "torn", stream: chunk.stream, index: chunk.index };
    return { what: "whole", chunk, bytes };
  }

  private withdrawn(body: Members): Happening | null {
    const handle = body.count("handle");
    const arriving = this.arriving.get(handle);
    this.forget(handle);
    if (!arriving) {
      if (this.withdrawnEarly.size < MAX_ARRIVING) this.withdrawnEarly.add(handle);
      return null;
    }
    return { what: "withdrawn", stream: arriving.chunk.stream, index: arriving.chunk.index, reason: body.text("reason") };
  }

  private drop(arriving: Arriving): void {
    this.buffered -= arriving.bytes?.length ?? 0;
    arriving.bytes = null;
  }

  private forget(handle: number): void {
    const arriving = this.arriving.get(handle);
    if (arriving) this.drop(arriving);
    this.arriving.delete(handle);
  }
}

function state(body: Members): Happening {
  return {
    what: "state", stream: body.text("stream"), index: body.index("index"), state: body.text("state"),
    receipt: body.maybeText("receipt"),
  };
}

function omitted(body: Members): Happening {
  const [from, to] = [body.index("from"), body.index("to")];
  if (to < from) throw new ProtocolError();
  return { what: "omitted", stream: body.text("stream"), from, to, reason: body.text("reason") };
}

function capture(body: Members): Happening {
  return { what: "capture", event: body.text("event"), lastSign: body.count("last_sign") };
}

function joins(body: Members): Happening | null {
  const lane = laneOf(body.text("variant"));
  return lane && { what: "stream", stream: body.text("stream"), lane, follows: body.maybeText("follows") };
}

function cursor(body: Members): Happening {
  return { what: "cursor", cursor: body.text("cursor", MAX_CURSOR_CHARS) };
}
