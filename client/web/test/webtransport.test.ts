import assert from "node:assert/strict";
import { test } from "node:test";
import { Assembly, type Happening } from "../src/rules/assembly";
import { joined, toVarint } from "../src/rules/bytes";
import { control, kind } from "../src/rules/frames";
import { openWebTransport } from "../src/io/webtransport";

/** A session as the browser gives it, whose other end the test holds. */
class Fake {
  static last: Fake;
  ready = Promise.resolve();
  ended!: () => void;
  closed = new Promise<void>((done) => (this.ended = done));
  private streams = new TransformStream<ReadableStream<Uint8Array>>();
  incomingUnidirectionalStreams = this.streams.readable;
  up = new TransformStream<Uint8Array>();
  down = new TransformStream<Uint8Array>();
  private opener = this.streams.writable.getWriter();

  constructor(readonly url: string, readonly options: { serverCertificateHashes?: { value: Uint8Array }[] }) {
    Fake.last = this;
  }

  async createBidirectionalStream(): Promise<object> {
    return { readable: this.down.readable, writable: this.up.writable };
  }

  close(): void {
    this.ended();
  }

  stream(): WritableStreamDefaultWriter<Uint8Array> {
    const stream = new TransformStream<Uint8Array>();
    void this.opener.write(stream.readable);
    return stream.writable.getWriter();
  }
}

const chunk = (handle: number): Uint8Array => control(kind.CHUNK, {
  handle, stream: "s", variant: "audio_priority", media: "audio", index: handle, length: 3, sha256: "00", started: "2026-01-01T00:00:00Z",
  ended: "2026-01-01T00:00:02Z", state: "arriving", replay: false,
});
const piece = (handle: number): Uint8Array => {
  const body = joined([toVarint(handle), toVarint(0), Uint8Array.of(1, 2, 3)]);
  return joined([toVarint(kind.PIECE), toVarint(body.length), body]);
};

test("chunks come each on their own stream, and one that is reset leaves nothing", async () => {
  Object.assign(globalThis, { WebTransport: Fake });
  const assembly = new Assembly(() => true);
  const news: Happening[] = [];
  let came: () => void = () => undefined;
  let [opened, closed] = [0, 0];
  const connection = openWebTransport("https://relay/watch", [new Uint8Array(32)], {
    opened: () => opened++,
    frames: (frames) => {
      for (const frame of frames) news.push(...[assembly.take(frame)].filter((one): one is Happening => one !== null));
      came();
    },
    closed: () => closed++,
  });
  const until = async (is: () => boolean): Promise<void> => {
    while (!is()) await new Promise<void>((go) => (came = go));
  };
  while (!opened) await new Promise((go) => setTimeout(go, 1));
  const session = Fake.last;
  assert.deepEqual([session.url, session.options.serverCertificateHashes?.length], ["https://relay/watch", 1]);

  const [first, second] = [session.stream(), session.stream()];
  void second.write(joined([chunk(2), piece(2)]));
  const whole = joined([chunk(1), piece(1), control(kind.COMPLETE, { handle: 1 })]);
  // Cut anywhere, and the other chunk's end in between.
  void first.write(whole.subarray(0, 40));
  await until(() => news.some(({ what }) => what === "progress"));
  void second.abort(new Error("reset"));
  await until(() => news.some(({ what }) => what === "withdrawn"));
  void first.write(whole.subarray(40));
  void first.close();
  await until(() => news.some(({ what }) => what === "whole"));
  const word = session.down.writable.getWriter();
  void word.write(control(kind.SIGN, { last_sign: 7 }));
  await until(() => news.some(({ what }) => what === "sign"));
  assert.deepEqual(news.filter(({ what }) => what === "whole" || what === "withdrawn").map((one) => [one.what, "index" in one ? one.index : (one as { chunk: { index: number } }).chunk.index]),
    [["withdrawn", 2], ["whole", 1]]);

  connection.send(control(kind.RENEW, { capability: "x" }));
  const { value } = await session.up.readable.getReader().read();
  assert.equal(value?.[0], kind.RENEW);
  connection.close();
  connection.close();
  assert.equal(closed, 1);
});

test("a session that does not come about is told as closed, once", async () => {
  class Refused extends Fake {
    override ready = Promise.reject(new Error("refused"));
  }
  Object.assign(globalThis, { WebTransport: Refused });
  let opened = 0;
  await new Promise<void>((closed) => openWebTransport("https://relay/watch", [], { opened: () => opened++, frames: () => assert.fail(), closed }));
  assert.equal(opened, 0);
});
