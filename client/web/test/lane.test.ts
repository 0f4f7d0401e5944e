import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { MseOutput, type Shared } from "../src/io/lane";

const turn = (): Promise<void> => new Promise((go) => setImmediate(go));
const file = (path: string): Uint8Array<ArrayBuffer> => new Uint8Array(readFileSync(`../recording/${path}`));
const DAY_S = 24 * 3600;

/** The browser's buffer: takes what it is given, later. Notes where on its line each piece went. */
class Buffer extends EventTarget {
  updating = false;
  timestampOffset = 0;
  appendWindowEnd = Infinity;
  starts: number[] = [];
  appendBuffer(): void {
    this.starts.push(this.timestampOffset);
    this.later();
  }
  remove(): void {
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
  assert.ok(sound.add(future, future + 2000, file("audio_priority/01.mp4")));
  assert.ok(picture.add(future, future + 2000, file("live_preview/01.mp4")));
  await settled();
  assert.deepEqual([sound.line.spans.length, picture.line.spans.length, Source.made.length], [1, 1, 2]);

  assert.ok(sound.add(now, now + 2000, file("audio_priority/01.mp4")));
  assert.ok(picture.add(now, now + 2000, file("live_preview/01.mp4")));
  assert.ok(sound.add(now + 2000, now + 4000, file("audio_priority/02.mp4")));
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
  sound.add(now, now + 2000, file("audio_priority/01.mp4"));
  sound.add(now - 20 * 3600 * 1000, now, file("audio_priority/02.mp4"));
  await settled();
  assert.equal(Source.made.length, before + 1);
  assert.equal(sound.line.spans.length, 2);
});
