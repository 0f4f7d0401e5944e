// The page's side of the worker.

import type { OpenOrder, Opened, Order, Verified } from "./crypto";
import type { CoreKey, ReceiptSays } from "../rules/receipt";

interface Answer extends Opened {
  id: number;
  verified?: Verified;
  failed?: true;
}

export class Vault {
  private readonly worker: Worker;
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private last = 0;

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

  async setKey(key: Uint8Array<ArrayBuffer>): Promise<void> {
    if ((await this.ask({ order: "key", key: key.slice() })).failed) throw new Error("no key");
  }

  /** Gives the bytes away. */
  async open(order: Omit<OpenOrder, "order">): Promise<Opened> {
    const answer = await this.ask({ order: "open", ...order }, [order.bytes.buffer]);
    return answer.failed ? { bad: "sealed" } : answer;
  }

  async verify(receipt: string, of: ReceiptSays, keys: CoreKey[]): Promise<Verified> {
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
