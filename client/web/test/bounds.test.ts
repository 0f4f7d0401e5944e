import assert from "node:assert/strict";
import { test } from "node:test";
import type { Connection, Listener } from "../src/io/transport";
import { Ways } from "../src/io/transport";
import { MAX_ORDERS, MAX_WAITING_BYTES, Vault } from "../src/io/vault";
import { MAX_HELD, MAX_STREAMS, openWebTransport } from "../src/io/webtransport";
import { joined, toVarint } from "../src/rules/bytes";
import { kind } from "../src/rules/frames";

/** A worker that answers when it is told to. */
class Slow {
  static last: Slow;
  onmessage: ((event: object) => void) | null = null;
  onerror: ((event: object) => void) | null = null;
  orders: number[] = [];
  constructor() {
    Slow.last = this;
  }
  postMessage({ id }: { id: number }): void {
    this.orders.push(id);
  }
  terminate(): void {}
  answer(): void {
    for (const id of this.orders.splice(0)) this.onmessage?.({ data: { id } });
  }
}
Object.assign(globalThis, { Worker: Slow });
const turn = (): Promise<void> => new Promise((go) => setImmediate(go));
const identity = { incident: "i", stream: "s", media: "audio", index: 1 };

test("a worker that is slow is given so much, and no more", async () => {
  const vault = new Vault("worker.js", { key: () => new Uint8Array(32), lost: () => assert.fail(), back: () => assert.fail() });
  const keyed = vault.ready();
  Slow.last.answer();
  await keyed;
  const open = (length: number): ReturnType<Vault["open"]> => vault.open({ identity, sha256: "00", bytes: new Uint8Array(length) });
  const many = [open(MAX_WAITING_BYTES - 1), open(1)];
  assert.deepEqual(await open(1), { bad: "busy" });
  await turn();
  Slow.last.answer();
  await Promise.all(many);
  const again = Array.from({ length: MAX_ORDERS }, () => vault.verify("r", { ...identity, length: 1, sha256: "00" }, []));
  assert.equal(await vault.verify("r", { ...identity, length: 1, sha256: "00" }, []), "invalid");
  assert.deepEqual(await open(1), { bad: "busy" });
  Slow.last.answer();
  await Promise.all(again);
  const last = open(MAX_WAITING_BYTES);
  await turn();
  Slow.last.answer();
  assert.equal((await last).bad, undefined, "what was answered counts no more");
});

const fails = (worker: Slow): void => worker.onerror?.({ preventDefault: () => undefined });

test("a worker that does not load is made again, knows the key then, and is given up after a few times", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  let [lost, back] = [0, 0];
  const vault = new Vault("worker.js", { key: () => new Uint8Array(32), lost: () => lost++, back: () => back++ });
  let keyed = false;
  void vault.ready().then(() => (keyed = true));
  const first = Slow.last;
  const waits = vault.open({ identity, sha256: "00", bytes: new Uint8Array(1) });
  fails(first);
  context.mock.timers.tick(400);
  assert.equal(Slow.last, first, "not at once");
  context.mock.timers.tick(200);
  assert.notEqual(Slow.last, first);
  Slow.last.answer();
  await turn();
  assert.deepEqual([keyed, back, lost, Slow.last.orders.length], [true, 1, 0, 1], "what waited for the key is given to it");
  // It breaks with an order: that one can be asked for again.
  fails(Slow.last);
  assert.deepEqual((await waits).bad, "busy");
  for (let i = 0; i < 3; i++) {
    context.mock.timers.tick(20_000);
    assert.equal(lost, 0);
    fails(Slow.last);
  }
  assert.equal(lost, 1);
  const last = Slow.last;
  context.mock.timers.tick(60_000);
  assert.equal(Slow.last, last, "no more");
});

test("the key is given to each worker and kept by nobody else", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const [given, told] = [[], []] as [Uint8Array[], Uint8Array[]];
  /** As a browser does it: what is given away is gone. */
  class Thread extends Slow {
    override postMessage(message: { id: number; order?: string; key?: Uint8Array<ArrayBuffer> }, transfer: Transferable[] = []): void {
      const { id, key } = structuredClone(message, { transfer: transfer as ArrayBuffer[] });
      if (key) told.push(key);
      super.postMessage({ id });
    }
  }
  Object.assign(globalThis, { Worker: Thread });
  let there = true;
  const key = (): Uint8Array<ArrayBuffer> | null => {
    if (!there) return null;
    const one = new Uint8Array(32).fill(9);
    given.push(one);
    return one;
  };
  const vault = new Vault("worker.js", { key, lost: () => assert.fail(), back: () => undefined });
  Slow.last.answer();
  await vault.ready();
  fails(Slow.last);
  context.mock.timers.tick(500);
  Slow.last.answer();
  await vault.ready();
  assert.deepEqual(told, [new Uint8Array(32).fill(9), new Uint8Array(32).fill(9)]);
  assert.deepEqual(given.map(({ length }) => length), [0, 0]);
  assert.ok(!Object.values(vault).some((value) => value instanceof Uint8Array));
  // Forgotten meanwhile.
  there = false;
  fails(Slow.last);
  context.mock.timers.tick(2000);
  await assert.rejects(vault.ready());
  Object.assign(globalThis, { Worker: Slow });
});

/** A session whose streams the test opens. */
class Session {
  static last: Session;
  ready = Promise.resolve();
  closed = new Promise<void>(() => undefined);
  private streams = new TransformStream<ReadableStream<Uint8Array>>(undefined, undefined, { highWaterMark: 1000 });
  incomingUnidirectionalStreams = this.streams.readable;
  private opener = this.streams.writable.getWriter();
  cancelled = 0;
  constructor() {
    Session.last = this;
  }
  async createBidirectionalStream(): Promise<object> {
    return { readable: new ReadableStream(), writable: new WritableStream() };
  }
  close(): void {}
  stream(): ReadableStreamDefaultController<Uint8Array> {
    let give!: ReadableStreamDefaultController<Uint8Array>;
    void this.opener.write(new ReadableStream({ start: (controller) => void (give = controller), cancel: () => void this.cancelled++ }));
    return give;
  }
}

/** A session that is open, and how many frames came. */
async function opened(): Promise<{ frames: () => number; close: () => void }> {
  Object.assign(globalThis, { WebTransport: Session });
  let [frames, open] = [0, false];
  const connection = openWebTransport("https://relay/watch", [], { opened: () => (open = true), frames: (some) => void (frames += some.length), closed: () => undefined });
  while (!open) await turn();
  return { frames: () => frames, close: () => connection.close() };
}

test("so many streams are read at once, and one more is not", async () => {
  const session = await opened();
  const streams = Array.from({ length: MAX_STREAMS }, () => Session.last.stream());
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(Session.last.cancelled, 0);
  Session.last.stream();
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(Session.last.cancelled, 1);
  streams[0]?.close();
  for (let i = 0; i < 5; i++) await turn();
  Session.last.stream();
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(Session.last.cancelled, 1, "there is room again");
  session.close();
});

test("frames that are not whole take so much room in all, and no more", async () => {
  const session = await opened();
  const length = 262_160;
  const part = joined([toVarint(kind.PIECE), toVarint(length), new Uint8Array(length - 1)]);
  const fit = Math.floor(MAX_HELD / part.length);
  const streams = Array.from({ length: fit + 1 }, () => Session.last.stream());
  for (const stream of streams.slice(0, fit)) stream.enqueue(part);
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(Session.last.cancelled, 0);
  streams[fit]?.enqueue(part);
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(Session.last.cancelled, 1, "the one that was too much is left");
  for (const stream of streams.slice(0, fit)) stream.enqueue(Uint8Array.of(0));
  for (let i = 0; i < 5; i++) await turn();
  assert.equal(session.frames(), fit, "the others came whole");
  session.close();
});

/** A relay whose WebTransport and WebSocket come about when the test says. */
class Two {
  static made: Two[] = [];
  readonly ready: Promise<void>;
  come!: () => void;
  fail!: (why: Error) => void;
  closed = new Promise<void>(() => undefined);
  incomingUnidirectionalStreams = new ReadableStream();
  over = false;
  constructor() {
    this.ready = new Promise((come, fail) => Object.assign(this, { come, fail }));
    Two.made.push(this);
  }
  createBidirectionalStream = async (): Promise<object> => ({ readable: new ReadableStream(), writable: new WritableStream() });
  close(): void {
    this.over = true;
  }
}
class Socket {
  static readonly OPEN = 1;
  static made: Socket[] = [];
  readyState = 0;
  onopen: (() => void) | null = null;
  onclose: (() => void) | null = null;
  constructor() {
    Socket.made.push(this);
  }
  close(): void {
    this.readyState = 3;
  }
  send(): void {}
}

function race(): { ways: Ways; told: string[]; connection: Connection } {
  [Two.made, Socket.made] = [[], []];
  Object.assign(globalThis, { WebTransport: Two, WebSocket: Socket });
  const ways = new Ways({ relay: "https://relay", core: "https://core", grant: "", webTransport: { url: "https://relay", hashes: [] } });
  const told: string[] = [];
  const listener: Listener = { opened: () => told.push("opened"), frames: () => undefined, closed: () => told.push("closed") };
  return { ways, told, connection: ways.open(listener) };
}
const until = async (is: () => boolean): Promise<void> => {
  while (!is()) await new Promise((go) => setTimeout(go, 5));
};

test("of two ways the first that opens is taken, and the other one closed", async () => {
  const late = race();
  await until(() => Socket.made.length === 1);
  (Socket.made[0] as Socket).onopen?.();
  assert.deepEqual([late.told, late.ways.carried, Two.made[0]?.over], [["opened"], "websocket", true]);
  late.connection.close();
  assert.deepEqual(late.told, ["opened", "closed"]);

  const soon = race();
  Two.made[0]?.come();
  await until(() => soon.told.length > 0);
  assert.deepEqual([soon.told, soon.ways.carried, Socket.made.length], [["opened"], "webtransport", 0]);
  soon.connection.close();

  const failing = race();
  Two.made[0]?.fail(new Error("refused"));
  // At once, not when its time is over.
  await until(() => Socket.made.length === 1);
  (Socket.made[0] as Socket).onclose?.();
  assert.deepEqual(failing.told, ["closed"]);

  const left = race();
  left.connection.close();
  assert.deepEqual([left.told, Socket.made.length], [["closed"], 0]);
});
