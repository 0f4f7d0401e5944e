import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { readMedia } from "../src/rules/mp4";
import { MseOutput, mediaSource, type Piece, type Shared } from "../src/io/lane";

const turn = (): Promise<void> => new Promise((go) => setImmediate(go));
const file = (path: string): Uint8Array<ArrayBuffer> => new Uint8Array(readFileSync(`../recording/${path}`));
const piece = (started: number, path: string): Piece => ({ key: `${path} ${started}`, started, ended: started + 2000, newest: false, bytes: file(path) });
const DAY_S = 24 * 3600;

/** The browser's buffer: takes what it is given, later. Notes where on its line each piece went. */
class Buffer extends EventTarget {
  updating = false;
  timestampOffset = 0;
  appendWindowEnd = Infinity;
  starts: number[] = [];
  removed: [number, number][] = [];
  /** What is here, seconds; the test may take some of it away. */
  there: [number, number][] = [];
  /** Throws that there is no room so many times. */
  full = 0;
  get buffered(): object {
    const { there } = this;
    return { length: there.length, start: (i: number) => there[i]?.[0], end: (i: number) => there[i]?.[1] };
  }
  appendBuffer(bytes: Uint8Array): void {
    if (this.full-- > 0) throw Object.assign(new Error(), { name: "QuotaExceededError" });
    const { begins, duration } = readMedia(bytes) as { begins: number; duration: number };
    this.starts.push(this.timestampOffset);
    const start = this.timestampOffset + begins;
    this.there = [...this.there, [start, Math.min(start + duration, this.appendWindowEnd)] as [number, number]].sort((a, b) => a[0] - b[0]);
    this.later();
  }
  remove(from: number, to: number): void {
    this.removed.push([from, to]);
    this.there = this.there.filter(([start, end]) => end <= from || start >= to);
    this.later();
  }
  private later(): void {
    this.updating = true;
    setImmediate(() => {
      this.updating = false;
      this.dispatchEvent(new Event("updateend"));
    });
  }
}

class Source extends EventTarget {
  static readonly isTypeSupported = (): boolean => true;
  static made: Source[] = [];
  readyState = "closed";
  buffer = new Buffer();
  constructor() {
    super();
    Source.made.push(this);
  }
  addSourceBuffer(): Buffer {
    return this.buffer;
  }
}

/** A media element: opens the source that it is given. */
class Element extends EventTarget {
  paused = true;
  seeking = false;
  readyState = 4;
  playbackRate = 1;
  currentTime = 0;
  private at = "";
  get src(): string {
    return this.at;
  }
  set src(url: string) {
    this.at = url;
    const source = Source.made[Number(url.slice(5))] as Source;
    setImmediate(() => {
      source.readyState = "open";
      source.dispatchEvent(new Event("sourceopen"));
    });
  }
  async play(): Promise<void> {
    this.paused = false;
  }
}
Object.assign(globalThis, { MediaSource: Source });
URL.createObjectURL = () => `blob:${Source.made.length - 1}`;
URL.revokeObjectURL = () => undefined;

const settled = async (): Promise<void> => {
  for (let i = 0; i < 20; i++) await turn();
};

test("a piece that said it was of a far future moves nobody: both lanes begin anew where the others are", async () => {
  const shared: Shared = { origin: null, moved: [] };
  const [heard, seen] = [new Element(), new Element()];
  const sound = new MseOutput(heard as never, shared);
  const picture = new MseOutput(seen as never, shared);
  const now = Date.UTC(2026, 0, 1);
  const future = now + 40 * 3600 * 1000;
  // Within what is played at all (48 hours), and more than a day ahead of what comes then.
  sound.add(piece(future, "audio_priority/01.mp4"));
  picture.add(piece(future, "live_preview/01.mp4"));
  await settled();
  assert.deepEqual([sound.line.spans.length, picture.line.spans.length, Source.made.length], [1, 1, 2]);

  sound.add(piece(now, "audio_priority/01.mp4"));
  picture.add(piece(now, "live_preview/01.mp4"));
  sound.add(piece(now + 2000, "audio_priority/02.mp4"));
  await settled();
  assert.equal(Source.made.length, 4, "each element has a source of its own again");
  assert.equal(shared.origin, now - DAY_S * 1000);
  const starts = Source.made.slice(2).map(({ buffer }) => buffer.starts.map(Math.round));
  // What the files say of their own beginning is taken off.
  assert.deepEqual(starts.map((list) => list[0]), [DAY_S, DAY_S]);
  assert.ok(sound.line.at(now + 3000) && picture.line.at(now + 1000) && !sound.line.at(future));
  picture.play(now + 1000, 1, false);
  assert.deepEqual([Math.round(seen.currentTime), seen.paused], [DAY_S + 1, false]);
});

test("what is older than the first piece by less goes before it, and nothing begins anew", async () => {
  const shared: Shared = { origin: null, moved: [] };
  const before = Source.made.length;
  const sound = new MseOutput(new Element() as never, shared);
  const now = Date.UTC(2026, 0, 1);
  sound.add(piece(now, "audio_priority/01.mp4"));
  sound.add(piece(now - 20 * 3600 * 1000, "audio_priority/02.mp4"));
  await settled();
  assert.equal(Source.made.length, before + 1);
  assert.equal(sound.line.spans.length, 2);
});

/** An output with so many pieces of two seconds, and the browser's buffer. */
async function filled(count: number): Promise<{ sound: MseOutput; buffer: Buffer; now: number; said: boolean[] }> {
  const sound = new MseOutput(new Element() as never, { origin: null, moved: [] });
  const said: boolean[] = [];
  sound.played = (can) => said.push(can);
  const now = Date.UTC(2026, 0, 1);
  for (let i = 0; i < count; i++) sound.add(piece(now + i * 2000, "audio_priority/02.mp4"));
  for (let i = 0; i < count; i++) await settled();
  return { sound, buffer: (Source.made[Source.made.length - 1] as Source).buffer, now, said };
}

test("what the browser frees by itself is not on the line any more, whether it says so or not", async () => {
  const { sound, buffer, now } = await filled(10);
  assert.equal(sound.line.spans.length, 10);
  buffer.there = buffer.there.slice(3);
  buffer.dispatchEvent(new Event("bufferedchange"));
  const here = (): boolean[] => [1000, 5000, 7000, 11_000].map((at) => sound.line.at(now + at) !== undefined);
  assert.deepEqual([sound.line.spans.length, here()], [7, [false, false, true, true]]);
  buffer.there = buffer.there.slice(2);
  sound.add(piece(now + 20_000, "audio_priority/02.mp4"));
  await settled();
  assert.deepEqual([sound.line.spans.length, here()], [6, [false, false, false, true]]);
});

test("a full buffer gives up what is farthest from what plays, before or after it", async () => {
  for (const [at, far] of [[4000, "after"], [54_000, "before"]] as const) {
    const { sound, buffer, now } = await filled(30);
    sound.near(now + at);
    buffer.full = 1;
    sound.add(piece(now + 60_000, "audio_priority/02.mp4"));
    await settled();
    assert.equal(buffer.removed.length, 1);
    const [from, to] = buffer.removed[0] as [number, number];
    assert.ok(far === "after" ? from - DAY_S > at / 1000 + 10 : to - DAY_S < at / 1000 - 10, `${far}: ${from - DAY_S} to ${to - DAY_S}`);
    assert.ok(sound.line.at(now + at) && sound.line.at(now + 61_000), "what plays stays, and the new piece is here");
  }
});

test("where all is near to what plays, the piece that has no room is left, and nothing loops", async () => {
  const { sound, buffer, now } = await filled(5);
  sound.near(now + 5000);
  buffer.full = 1;
  sound.add(piece(now + 10_000, "audio_priority/02.mp4"));
  await settled();
  assert.deepEqual([buffer.removed, sound.line.spans.length, sound.line.at(now + 11_000)], [[], 5, undefined]);
});

test("a piece that can't be played is told, and so is the next one that can", async () => {
  const { sound, now, said } = await filled(1);
  sound.add({ ...piece(now + 2000, "audio_priority/02.mp4"), bytes: new Uint8Array(50) });
  sound.add(piece(now + 4000, "audio_priority/02.mp4"));
  await settled();
  assert.deepEqual(said, [true, false, true]);
});

test("where a browser has ManagedMediaSource alone, as an iPhone does, it plays through that", async () => {
  class Managed extends Source {}
  const had = globalThis.MediaSource;
  try {
    Object.assign(globalThis, { ManagedMediaSource: Managed });
    assert.equal(mediaSource(), Source, "where both are, the older one");
    delete (globalThis as { MediaSource?: unknown }).MediaSource;
    assert.equal(mediaSource(), Managed);
    const element = new Element();
    const sound = new MseOutput(element as never, { origin: null, moved: [] });
    const now = Date.UTC(2026, 0, 1);
    sound.add(piece(now, "audio_priority/01.mp4"));
    await settled();
    assert.ok(Source.made[Source.made.length - 1] instanceof Managed && sound.line.at(now + 1000));
    assert.equal((element as { disableRemotePlayback?: boolean }).disableRemotePlayback, true, "else it would not open there");
    delete (globalThis as { ManagedMediaSource?: unknown }).ManagedMediaSource;
    assert.equal(mediaSource(), null);
  } finally {
    Object.assign(globalThis, { MediaSource: had });
    delete (globalThis as { ManagedMediaSource?: unknown }).ManagedMediaSource;
  }
});
