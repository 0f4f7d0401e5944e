// The relay over WebTransport: one stream for control, one for each chunk, so that no lost packet of a picture holds up sound.

import { Decoder, type Frame, ProtocolError, control, kind, Members } from "../rules/frames";
import type { Connection, Listener } from "./transport";

interface Bidirectional {
  readable: ReadableStream<Uint8Array>;
  writable: WritableStream<Uint8Array>;
}

/** What is used of the browser's object; not every library of types has it. */
interface Session {
  ready: Promise<void>;
  closed: Promise<unknown>;
  incomingUnidirectionalStreams: ReadableStream<ReadableStream<Uint8Array>>;
  createBidirectionalStream(): Promise<Bidirectional>;
  close(): void;
}

type Kind = new (url: string, options: object) => Session;

/** After its last control frame the relay closes within two seconds. */
const GRACE_MS = 3000;

/** Streams of chunks that are read at once; the relay opens half as many. One more is not read. */
export const MAX_STREAMS = 64;
/** Bytes of frames that are not whole, of all streams together. */
export const MAX_HELD = 8 * 1024 * 1024;

const browser = (): Kind | undefined => (globalThis as { WebTransport?: Kind }).WebTransport;

export const hasWebTransport = (): boolean => browser() !== undefined;

/** Opens a session; nothing is told before it is open, but that it is not. */
export function openWebTransport(url: string, hashes: Uint8Array<ArrayBuffer>[], listener: Listener): Connection {
  return new Opened(url, hashes, listener);
}

class Opened implements Connection {
  private session: Session | null = null;
  private writer: WritableStreamDefaultWriter<Uint8Array> | null = null;
  private over = false;
  private streams = 0;
  private held = 0;

  constructor(url: string, hashes: Uint8Array<ArrayBuffer>[], private readonly listener: Listener) {
    void this.run(url, hashes).catch(() => undefined).then(() => this.close());
  }

  send(frame: Uint8Array<ArrayBuffer>): void {
    this.writer?.write(frame).catch(() => this.close());
  }

  close(): void {
    if (this.over) return;
    this.over = true;
    try {
      this.session?.close();
    } catch {
      // It never came to be open.
    }
    this.listener.closed();
  }

  private async run(url: string, hashes: Uint8Array<ArrayBuffer>[]): Promise<void> {
    const Kind = browser();
    if (!Kind) return;
    const pinned = hashes.length ? { serverCertificateHashes: hashes.map((value) => ({ algorithm: "sha-256", value })) } : {};
    const session = new Kind(url, { ...pinned, congestionControl: "default" });
    this.session = session;
    session.closed.catch(() => undefined);
    await session.ready;
    const stream = await session.createBidirectionalStream();
    if (this.over) return;
    this.writer = stream.writable.getWriter();
    this.listener.opened();
    void this.chunks(session).catch(() => this.close());
    await this.control(stream.readable);
    // What is still on its way on other streams may come until the relay closes, which it does soon.
    await Promise.race([session.closed, new Promise((go) => setTimeout(go, GRACE_MS))]);
  }

  private async control(readable: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new Decoder();
    for await (const bytes of read(readable)) this.tell(decoder.push(bytes));
  }

  private async chunks(session: Session): Promise<void> {
    for await (const stream of read(session.incomingUnidirectionalStreams)) void this.chunk(stream);
  }

  /** One chunk. A stream that ends otherwise than with COMPLETE leaves nothing of it. */
  private async chunk(stream: ReadableStream<Uint8Array>): Promise<void> {
    if (this.streams >= MAX_STREAMS) return void stream.cancel().catch(() => undefined);
    this.streams++;
    const decoder = new Decoder();
    let handle: number | null = null;
    let whole = false;
    let held = 0;
    try {
      for await (const bytes of read(stream)) {
        const frames = decoder.push(bytes);
        this.held += decoder.waiting - held;
        held = decoder.waiting;
        if (this.held > MAX_HELD) throw new ProtocolError();
        for (const frame of frames) {
          if (frame.kind === kind.CHUNK) handle = new Members(frame.body).count("handle");
          whole ||= frame.kind === kind.COMPLETE;
        }
        this.tell(frames);
      }
    } catch {
      // Reset: the control stream says why. Or it is too much.
    }
    this.streams--;
    this.held -= held;
    if (handle !== null && !whole) this.tell(new Decoder().push(control(kind.WITHDRAWN, { handle, reason: "cut" })));
  }

  private tell(frames: Frame[]): void {
    if (this.over || !frames.length) return;
    try {
      this.listener.frames(frames);
    } catch {
      this.close();
    }
  }
}

async function* read<T>(stream: ReadableStream<T>): AsyncGenerator<T> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    // What is not read to its end is not waited for.
    reader.cancel().catch(() => undefined);
  }
}
