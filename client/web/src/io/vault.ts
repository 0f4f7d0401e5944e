// The page's side of the worker.

import type { OpenOrder, Opened, Order, Verified } from "./crypto";
import type { CoreKey, ReceiptSays } from "../rules/receipt";

/** Orders that wait for the worker, and bytes of chunks among them. What comes beyond is not taken: it can be fetched. */
export const MAX_ORDERS = 1_024;
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;

interface Answer extends Opened {
  id: number;
  verified?: Verified;
  failed?: true;
}

export class Vault {
  private readonly worker: Worker;
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private last = 0;
  private waitingBytes = 0;
  private keyed: Promise<unknown> = Promise.resolve();

  constructor(source: string, private readonly lost: () => void) {
    this.worker = new Worker(source);
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      this.waiting.get(data.id)?.(data);
      this.waiting.delete(data.id);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.lost();
    };
  }

  /** What is to be opened waits for it. */
  setKey(key: Uint8Array<ArrayBuffer>): Promise<void> {
    const answered = this.ask({ order: "key", key: key.slice() });
    this.keyed = answered;
    return answered.then(({ failed }) => {
      if (failed) throw new Error("no key");
    });
  }

  /** Gives the bytes away. */
  async open(order: Omit<OpenOrder, "order">): Promise<Opened> {
    const { length } = order.bytes;
    if (this.waiting.size >= MAX_ORDERS || this.waitingBytes + length > MAX_WAITING_BYTES) return { bad: "busy" };
    this.waitingBytes += length;
    await this.keyed;
    const answer = await this.ask({ order: "open", ...order }, [order.bytes.buffer]);
    this.waitingBytes -= length;
    return answer.failed ? { bad: "sealed" } : answer;
  }

  /** What can't be checked now is not proven; the core's own list says it again. */
  async verify(receipt: string, of: ReceiptSays, keys: CoreKey[]): Promise<Verified> {
    if (this.waiting.size >= MAX_ORDERS) return "invalid";
    return (await this.ask({ order: "verify", receipt, of, keys })).verified ?? "invalid";
  }

  end(): void {
    this.worker.terminate();
  }

  private ask(order: Order, transfer: Transferable[] = []): Promise<Answer> {
    const id = ++this.last;
    return new Promise((answered) => {
      this.waiting.set(id, answered);
      this.worker.postMessage({ id, ...order }, transfer);
    });
  }
}
