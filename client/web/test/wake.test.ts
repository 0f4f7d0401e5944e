import assert from "node:assert/strict";
import { test } from "node:test";
import { Wake } from "../src/io/wake";

const turn = (): Promise<void> => new Promise((go) => setImmediate(go));

/** The browser: gives locks while its page is seen, and takes them back when it is hidden. */
class Screen {
  asked = 0;
  refuses = false;
  held: Lock[] = [];
  constructor() {
    const wakeLock = {
      request: async (kind: string) => {
        assert.equal(kind, "screen");
        this.asked++;
        await turn();
        if (this.refuses || visibility.visibilityState !== "visible") throw new Error("NotAllowedError");
        const lock = new Lock(this);
        this.held.push(lock);
        return lock;
      },
    };
    Object.defineProperty(globalThis, "navigator", { value: { wakeLock }, configurable: true });
  }
  hide(): void {
    visibility.visibilityState = "hidden";
    for (const lock of this.held) void lock.release();
  }
}

class Lock extends EventTarget {
  constructor(private readonly screen: Screen) {
    super();
  }
  async release(): Promise<void> {
    if (!this.screen.held.includes(this)) return;
    this.screen.held = this.screen.held.filter((lock) => lock !== this);
    this.dispatchEvent(new Event("release"));
  }
}

const visibility = { visibilityState: "visible" };
Object.assign(globalThis, { document: visibility });

/** A screen, and a page that told so long that something plays, ten times a second. */
function begin(): { screen: Screen; wake: Wake; pass(seconds: number, plays: boolean): Promise<void> } {
  visibility.visibilityState = "visible";
  const [screen, wake] = [new Screen(), new Wake()];
  let now = 0;
  const pass = async (seconds: number, plays: boolean): Promise<void> => {
    for (const end = now + seconds * 1000; now < end; now += 100) {
      wake.tick(plays, now);
      await turn();
      await turn();
    }
  };
  return { screen, wake, pass };
}

test("the screen stays on as soon as something plays, without a tap, and is let go when nothing does", async () => {
  const { screen, pass } = begin();
  await pass(10, false);
  assert.equal(screen.asked, 0);
  await pass(1, true);
  assert.equal(screen.held.length, 1);
  // It waits for a piece, and goes on.
  await pass(3, false);
  await pass(60, true);
  assert.deepEqual([screen.held.length, screen.asked], [1, 1]);
  await pass(4, false);
  assert.equal(screen.held.length, 1);
  await pass(2, false);
  assert.deepEqual([screen.held.length, screen.asked], [0, 1]);
  await pass(1, true);
  assert.deepEqual([screen.held.length, screen.asked], [1, 2]);
});

test("a hidden page holds nothing and asks for nothing, and has it again when it is seen", async () => {
  const { screen, wake, pass } = begin();
  await pass(1, true);
  screen.hide();
  wake.again();
  await pass(60, true);
  assert.deepEqual([screen.held.length, screen.asked], [0, 1]);
  visibility.visibilityState = "visible";
  wake.again();
  await pass(1, true);
  assert.deepEqual([screen.held.length, screen.asked], [1, 2]);
});

test("a browser that refuses is asked again in a while, or when somebody taps", async () => {
  const { screen, wake, pass } = begin();
  screen.refuses = true;
  await pass(29, true);
  assert.deepEqual([screen.held.length, screen.asked], [0, 1]);
  await pass(2, true);
  assert.equal(screen.asked, 2);
  screen.refuses = false;
  wake.again();
  await pass(1, true);
  assert.deepEqual([screen.held.length, screen.asked], [1, 3]);
  // What the browser takes back by itself is asked for again, not at once.
  await screen.held[0]?.release();
  await pass(31, true);
  assert.deepEqual([screen.held.length, screen.asked], [1, 4]);
});

test("it is asked for once at a time, and what is given when nothing plays any more is let go at once", async () => {
  const { screen, wake } = begin();
  wake.tick(true, 0);
  wake.again();
  wake.tick(true, 100);
  wake.tick(false, 60_000);
  await turn();
  await turn();
  assert.deepEqual([screen.asked, screen.held.length], [1, 0]);
});

test("a browser without such locks is left alone", async () => {
  const { pass } = begin();
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  await pass(60, true);
});
