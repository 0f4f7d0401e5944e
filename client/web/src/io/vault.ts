// The page's side of the worker.

import type { OpenOrder, Opened, Order, Verified } from "./crypto";
import type { CoreKey, ReceiptSays } from "../rules/receipt";

/** Orders that wait for the worker, and bytes of chunks among them. What comes beyond is not taken: it can be fetched. */
export const MAX_ORDERS = 1_024;
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;

/** A worker that does not load, or breaks, is made again after these pauses; then no more. */
const PAUSES_MS = [500, 2000, 5000, 15_000];
/** One that worked for so long was a good one. */
const STEADY_MS = 60_000;

interface Answer extends Opened {
  id: number;
  verified?: Verified;
  failed?: true;
}

export class Vault {
  private worker: Worker | null = null;
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private last = 0;
  private waitingBytes = 0;
  private keyed: Promise<void>;
  private isKeyed: () => void = () => undefined;
  private noKey: (why: Error) => void = () => undefined;
  private failures = 0;
  private over = false;

  /** `key` is asked for the group key for each worker, to which it is given away: none is kept here. `lost`: there will be none. `back`: there is one again, which knows the key. */
  constructor(private readonly source: string, private readonly hooks: { key(): Uint8Array<ArrayBuffer> | null; lost(): void; back(): void }) {
    this.keyed = this.unkeyed();
    this.make();
  }

  /** When the worker knows the key. What is to be opened waits for it. */
  ready(): Promise<void> {
    return this.keyed;
  }

  /** Gives the bytes away. */
  async open(order: Omit<OpenOrder, "order">): Promise<Opened> {
    const { length } = order.bytes;
    if (this.waiting.size >= MAX_ORDERS || this.waitingBytes + length > MAX_WAITING_BYTES) return { bad: "busy" };
    this.waitingBytes += length;
    try {
      await this.keyed;
      const answer = await this.ask({ order: "open", ...order }, [order.bytes.buffer]);
      // A worker that failed says nothing of the bytes: they can be fetched again.
      return answer.failed ? { bad: "busy" } : answer;
    } catch {
      return { bad: "busy" };
    } finally {
      this.waitingBytes -= length;
    }
  }

  /** What can't be checked now is not proven; the core's own list says it again. */
  async verify(receipt: string, of: ReceiptSays, keys: CoreKey[]): Promise<Verified> {
    if (this.waiting.size >= MAX_ORDERS) return "invalid";
    return (await this.ask({ order: "verify", receipt, of, keys })).verified ?? "invalid";
  }

  end(): void {
    this.over = true;
    this.worker?.terminate();
    this.worker = null;
  }

  private unkeyed(): Promise<void> {
    const keyed = new Promise<void>((yes, no) => ([this.isKeyed, this.noKey] = [yes, no]));
    keyed.catch(() => undefined);
    return keyed;
  }

  private make(): void {
    if (this.over) return;
    let worker: Worker;
    try {
      worker = new Worker(this.source);
    } catch {
      return this.broke();
    }
    this.worker = worker;
    const made = performance.now();
    worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      this.waiting.get(data.id)?.(data);
      this.waiting.delete(data.id);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      if (worker !== this.worker) return;
      if (performance.now() - made > STEADY_MS) this.failures = 0;
      worker.terminate();
      this.broke();
    };
    this.giveKey(worker);
  }

  /** The worker is gone, and what was given to it. */
  private broke(): void {
    this.worker = null;
    const waiting = [...this.waiting.entries()];
    this.waiting.clear();
    // Whoever waits for the key goes on waiting for it.
    this.noKeyYet();
    for (const [id, answered] of waiting) answered({ id, bad: "busy" });
    const pause = PAUSES_MS[this.failures++];
    if (pause === undefined) this.hooks.lost();
    else setTimeout(() => this.make(), pause);
  }

  private keyIsThere = false;

  private noKeyYet(): void {
    if (this.keyIsThere) this.keyed = this.unkeyed();
    this.keyIsThere = false;
  }

  private giveKey(worker: Worker): void {
    const key = this.hooks.key();
    if (!key) return this.noKey(new Error("no key"));
    void this.ask({ order: "key", key }, [key.buffer]).then(({ failed, bad }) => {
      // Another worker has it to be told.
      if (worker !== this.worker || bad) return;
      if (failed) return this.noKey(new Error("no key"));
      this.keyIsThere = true;
      this.isKeyed();
      if (this.failures) this.hooks.back();
    });
  }

  private ask(order: Order, transfer: Transferable[] = []): Promise<Answer> {
    const id = ++this.last;
    const { worker } = this;
    if (!worker) return Promise.resolve({ id, bad: "busy" });
    return new Promise((answered) => {
      this.waiting.set(id, answered);
      worker.postMessage({ id, ...order }, transfer);
    });
  }
}
