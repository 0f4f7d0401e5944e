// The worker: digests, opens and verifies, apart from the page. It holds the group key as one that can't be read back.

import { open, setKey, verify, type Order } from "./io/crypto";

declare const self: { onmessage: ((event: MessageEvent) => void) | null; postMessage(value: unknown, transfer?: Transferable[]): void };

self.onmessage = async ({ data }: MessageEvent<Order & { id: number }>) => {
  try {
    if (data.order === "key") {
      await setKey(data.key);
      self.postMessage({ id: data.id });
    } else if (data.order === "open") {
      const opened = await open(data);
      self.postMessage({ id: data.id, ...opened }, opened.plaintext ? [opened.plaintext.buffer] : []);
    } else {
      self.postMessage({ id: data.id, verified: await verify(data.receipt, data.of, data.keys) });
    }
  } catch {
    self.postMessage({ id: data.id, failed: true });
  }
};
