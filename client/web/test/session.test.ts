import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { Session } from "../src/io/session";
import { joined, toBase64url, toVarint, utf8 } from "../src/rules/bytes";
import { control, type Frame, kind, splitMessage } from "../src/rules/frames";
import type { Missed } from "../src/rules/missed";
import { writeLink, readLink } from "../src/rules/link";
import { heardAgo, phoneOf, screenOf } from "../src/rules/status";

// Time is the test's: nothing here waits.
mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_800_000_000_000 });
performance.now = () => Date.now() - 1_800_000_000_000;
Math.random = () => 0.5;
const turn = (): Promise<void> => new Promise((go) => setImmediate(go));
async function pass(ms: number): Promise<void> {
  for (let left = ms; left > 0; left -= 250) {
    mock.timers.tick(Math.min(left, 250));
    for (let i = 0; i < 8; i++) await turn();
  }
}

/** The browser's WebSocket; the test is the relay. */
class Socket {
  static readonly OPEN = 1;
  static all: Socket[] = [];
  readyState = 0;
  onopen: (() => void) | null = null;
  onclose: (() => void) | null = null;
  onmessage: ((event: { data: ArrayBuffer }) => void) | null = null;
  sent: Frame[] = [];
  constructor(readonly url: string) {
    Socket.all.push(this);
  }
  send(bytes: Uint8Array): void {
    this.sent.push(...splitMessage(bytes));
  }
  close(): void {
    this.readyState = 3;
  }
  open(): void {
    this.readyState = 1;
    this.onopen?.();
  }
  say(...frames: Uint8Array[]): void {
    this.onmessage?.({ data: joined(frames).buffer });
  }
  asked(): string[] {
    return this.sent.map((frame) => Object.entries(kind).find(([, value]) => value === frame.kind)?.[0] ?? "?");
  }
}

/** A worker for which everything opens. */
class Thread {
  static last: Thread;
  onmessage: ((event: object) => void) | null = null;
  onerror: ((event: object) => void) | null = null;
  constructor() {
    Thread.last = this;
  }
  postMessage({ id, order, bytes }: { id: number; order: string; bytes?: Uint8Array }): void {
    const answer = order === "open" ? { plaintext: bytes } : order === "verify" ? { verified: "verified" } : {};
    void Promise.resolve().then(() => this.onmessage?.({ data: { id, ...answer } }));
  }
  terminate(): void {}
}

let core: (path: string) => Promise<object>;
const part = (value: object): string => toBase64url(utf8(JSON.stringify(value)));
const given = { capability: `a.${part({ iat: 1, exp: 301 })}.c`, incident: "i", signs_receipts: false };
const gives = async (path: string): Promise<object> => (path.endsWith("/capability") ? given : { chunks: [] });
Object.assign(globalThis, {
  WebSocket: Socket, Worker: Thread,
  fetch: async (url: string) => new Response(JSON.stringify(await core(new URL(url).pathname))),
});

interface Heard {
  missed: Missed[];
  catchingUp: number;
}

function begin(asked = gives): { session: Session; heard: Heard } {
  Socket.all = [];
  core = asked;
  const secret = toBase64url(new Uint8Array(32));
  const link = readLink(writeLink({ relay: "http://127.0.0.1:1", core: "http://127.0.0.1:2", grant: secret, key: secret }));
  assert.ok(link);
  const heard: Heard = { missed: [], catchingUp: 0 };
  const session = new Session(link, false, {
    key: () => new Uint8Array(32), show: () => undefined, missed: (missed) => heard.missed.push(missed), catchingUp: () => heard.catchingUp++,
  });
  return { session, heard };
}

const last = (): Socket => Socket.all[Socket.all.length - 1] as Socket;
const watching = control(kind.WATCHING, { node: "n" });
/** Two seconds of sound, whole. */
function sound(index: number, replay: boolean, more: { until?: "begun" } = {}): Uint8Array {
  const at = (n: number): string => new Date(1_800_000_000_000 + n * 2000).toISOString();
  const chunk = control(kind.CHUNK, {
    handle: index, stream: "s", variant: "audio_priority", media: "audio", index, length: 3, sha256: "00", started: at(index), ended: at(index + 1),
    state: "near_live_unconfirmed", replay,
  });
  if (more.until) return chunk;
  const body = joined([toVarint(index), toVarint(0), Uint8Array.of(1, 2, 3)]);
  return joined([chunk, toVarint(kind.PIECE), toVarint(body.length), body, control(kind.COMPLETE, { handle: index })]);
}

test("the relay is reached for while the core is asked, and is asked when the core has answered", async () => {
  let answer: () => void = () => assert.fail();
  const { session } = begin((path) => (path.endsWith("/capability") ? new Promise((go) => (answer = () => go(given))) : gives(path)));
  void session.run();
  await pass(250);
  assert.equal(Socket.all.length, 1);
  last().open();
  await pass(250);
  assert.deepEqual(last().sent, []);
  answer();
  await pass(250);
  assert.deepEqual([Socket.all.length, last().asked()], [1, ["WATCH"]]);
  session.end();
});

test("a connection that the relay gave up while the core was slow is made again", async () => {
  let answer: () => void = () => assert.fail();
  const { session } = begin((path) => (path.endsWith("/capability") ? new Promise((go) => (answer = () => go(given))) : gives(path)));
  void session.run();
  await pass(250);
  last().open();
  last().onclose?.();
  await pass(5000);
  assert.equal(session.facts.relayAway, false, "nothing was asked of the relay yet");
  answer();
  await pass(250);
  last().open();
  assert.deepEqual([Socket.all.length, last().asked()], [2, ["WATCH"]]);
  session.end();
});

test("a subscription that does not begin within ten seconds is given up, and tried again", async () => {
  const { session } = begin();
  void session.run();
  await pass(250);
  last().open();
  await pass(9000);
  assert.deepEqual([Socket.all.length, last().readyState], [1, 1]);
  await pass(2500);
  assert.equal(Socket.all.length, 2);
  assert.equal(Socket.all[0]?.readyState, 3);
  await pass(2000);
  assert.equal(session.facts.relayAway, true);
  last().open();
  last().say(watching);
  await pass(1250);
  assert.deepEqual([session.facts.watching, session.facts.relayAway], [true, false]);
  session.end();
});

test("when the browser says that there is no network it is said at once, and when there is one it is tried at once", async () => {
  const { session } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching);
  session.offline();
  assert.deepEqual([session.facts.relayAway, session.facts.watching, last().readyState], [true, false, 3]);
  // Tries go on, and fail.
  for (let i = 0; i < 12; i++) {
    await pass(1000);
    last().onclose?.();
  }
  const tries = Socket.all.length;
  session.offline();
  await turn();
  session.poke();
  await pass(250);
  assert.equal(Socket.all.length, tries + 1);
  last().open();
  last().say(watching);
  await pass(1250);
  assert.equal(session.facts.relayAway, false);
  session.end();
});

test("a relay that has something of the recording is not said to have nothing until that comes", async () => {
  for (const [window, screen] of [[{ window_start: new Date(1_800_000_000_000).toISOString() }, null], [{}, "nothing_yet"]] as const) {
    const { session } = begin();
    void session.run();
    await pass(250);
    last().open();
    assert.equal(screenOf(session.facts), "connecting");
    last().say(control(kind.WATCHING, { node: "n", ...window }));
    assert.deepEqual([screenOf(session.facts), phoneOf(session.facts)], [screen, "unknown"]);
    // It went before anything came: there is nothing to show.
    last().onclose?.();
    await pass(2000);
    assert.equal(screenOf(session.facts), "relay_away");
    session.end();
  }
});

test("what was missed is told when it has come, and until then that it is coming", async () => {
  const { session, heard } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, sound(1, true), sound(2, false));
  await pass(250);
  last().onclose?.();
  await pass(6000);
  last().open();
  last().say(watching, sound(3, true), sound(4, true, { until: "begun" }), sound(5, true, { until: "begun" }));
  await pass(3500);
  assert.deepEqual([heard.catchingUp, heard.missed], [1, []]);
  last().say(sound(4, true), control(kind.OMITTED, { stream: "s", from: 5, to: 5, reason: "evicted" }), sound(6, false));
  await pass(1250);
  assert.deepEqual(heard.missed, [{ caughtUpMs: 6000, missingMs: 2000 }]);
  session.end();
});

test("a cut of which nobody noticed anything is no news", async () => {
  const { session, heard } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, sound(1, false));
  await pass(250);
  last().onclose?.();
  await pass(500);
  last().open();
  last().say(watching, sound(2, false));
  await pass(4000);
  assert.deepEqual(heard, { missed: [], catchingUp: 0 });
  session.end();
});

test("a device that slept asks at once, and its ages go on", async () => {
  const { session } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, control(kind.SIGN, { last_sign: 5 }));
  await pass(2000);
  const steady = performance.now;
  // The day went on for ten minutes, and the steady clock did not.
  performance.now = () => steady() - 600_000;
  mock.timers.setTime(Date.now() + 600_000);
  for (let i = 0; i < 8; i++) await turn();
  mock.timers.tick(1000);
  assert.equal(heardAgo(session.facts, performance.now()), 608);
  assert.equal(session.facts.checking, true);
  for (let i = 0; i < 4; i++) await pass(250);
  assert.deepEqual([Socket.all.length, Socket.all[0]?.readyState], [2, 3]);
  session.end();
  performance.now = steady;
});

/** Capabilities by their number, each good for 300 seconds; `asked` counts them. */
function renewable(): { session: Session; count: { asked: number } } {
  const count = { asked: 0 };
  const { session } = begin(async (path) => (path.endsWith("/capability") ? { ...given, capability: `${++count.asked}${given.capability}` } : gives(path)));
  return { session, count };
}
const sent = (socket: Socket, what: number): string[] =>
  socket.sent.filter((frame) => frame.kind === what).map((frame) => String(JSON.parse(new TextDecoder().decode(frame.body)).capability));
/** A second, with a sign of life, so that the connection is not asked. */
async function second(): Promise<void> {
  last().say(control(kind.SIGN, { last_sign: 0 }));
  await pass(1000);
}

test("a capability is renewed on the open connection after two thirds of its life, and again", async () => {
  const { session, count } = renewable();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching);
  for (let i = 0; i < 199; i++) await second();
  assert.deepEqual([count.asked, sent(last(), kind.RENEW)], [1, []]);
  for (let i = 0; i < 2; i++) await second();
  assert.deepEqual([count.asked, sent(last(), kind.RENEW)], [2, [`2${given.capability}`]]);
  for (let i = 0; i < 202; i++) await second();
  assert.deepEqual([count.asked, sent(last(), kind.RENEW)], [3, [`2${given.capability}`, `3${given.capability}`]]);
  assert.deepEqual([Socket.all.length, session.facts.watching], [1, true], "all on one connection");
  session.end();
});

test("a core that is away while the capability is renewed is asked again, and ends nothing", async () => {
  const { session, count } = renewable();
  const there = core;
  void session.run();
  await pass(250);
  last().open();
  last().say(watching);
  core = async () => Promise.reject(new Error("away"));
  for (let i = 0; i < 210; i++) await second();
  assert.deepEqual([count.asked, sent(last(), kind.RENEW), session.facts.coreAway, session.facts.watching], [1, [], true, true]);
  core = there;
  for (let i = 0; i < 8; i++) await second();
  assert.deepEqual([count.asked, sent(last(), kind.RENEW), session.facts.coreAway], [2, [`2${given.capability}`], false]);
  assert.equal(Socket.all.length, 1);
  session.end();
});

test("a relay that says that the capability ran out is watched again with a new one", async () => {
  const { session, count } = renewable();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, sound(1, false), control(kind.ENDING, { reason: "capability_expired" }));
  last().onclose?.();
  await pass(1000);
  assert.deepEqual([Socket.all.length, count.asked], [2, 2]);
  last().open();
  await pass(250);
  assert.deepEqual(sent(last(), kind.WATCH), [`2${given.capability}`]);
  last().say(watching);
  await pass(1250);
  assert.deepEqual([session.facts.watching, session.facts.stopped], [true, undefined]);
  // What ends for another reason goes on with what it has.
  last().say(control(kind.ENDING, { reason: "draining" }));
  last().onclose?.();
  await pass(1000);
  last().open();
  await pass(250);
  assert.deepEqual([count.asked, sent(last(), kind.WATCH)], [2, [`2${given.capability}`]]);
  session.end();
});

test("what was refused is asked for only by somebody, and nothing is asked for without end", async () => {
  const { session } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, sound(1, false), sound(2, true, { until: "begun" }), control(kind.WITHDRAWN, { handle: 2, reason: "stalled" }), sound(3, false, { until: "begun" }));
  await pass(250);
  session.ledger.bad("s", 3, "sealed");
  const asked = (): number => last().asked().filter((name) => name === "FETCH").length;
  for (let i = 0; i < 400; i++) {
    session.want(0, Infinity);
    // Something comes, so that the connection is not asked.
    last().say(control(kind.SIGN, { last_sign: 0 }));
    await pass(250);
  }
  assert.equal(asked(), 4, "after 8, 16, 32 seconds, of the second chunk alone");
  session.want(0, Infinity, true);
  await pass(250);
  assert.equal(asked(), 6);
  session.end();
});

test("a relay that says nothing of the phone for six seconds leaves nobody waiting", async () => {
  const { session } = begin();
  void session.run();
  await pass(250);
  last().open();
  last().say(watching, sound(1, true));
  await pass(5000);
  assert.equal(phoneOf(session.facts), "unknown");
  await pass(3000);
  assert.equal(phoneOf(session.facts), "idle");
  last().say(sound(2, false));
  assert.equal(phoneOf(session.facts), "live");
  session.end();
});

test("a page whose worker never loads says so and ends", async () => {
  const { session } = begin();
  void session.run();
  const before = Thread.last;
  for (let i = 0; i < 5; i++) {
    Thread.last.onerror?.({ preventDefault: () => undefined });
    await pass(16_000);
  }
  assert.notEqual(Thread.last, before);
  assert.equal(screenOf(session.facts), "no_worker");
});
