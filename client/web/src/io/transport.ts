// How frames come from the relay: what every transport gives, and the WebSocket.

import { type Frame, ProtocolError, splitMessage } from "../rules/frames";

/** A connection to `/watch`. */
export interface Connection {
  send(frame: Uint8Array<ArrayBuffer>): void;
  close(): void;
}

export interface Listener {
  opened(): void;
  /** In order, but for what travels on a stream of its own. */
  frames(frames: Frame[]): void;
  /** Once, and nothing after it. */
  closed(): void;
}

const PATIENCE_MS = 10_000;

/** Opens a WebSocket. */
export function openSocket(url: string, listener: Listener): Connection {
  const socket = new WebSocket(url, "waystation.watch.v1");
  socket.binaryType = "arraybuffer";
  let over = false;
  const end = (): void => {
    if (over) return;
    over = true;
    clearTimeout(late);
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
    listener.closed();
  };
  const late = setTimeout(end, PATIENCE_MS);
  socket.onopen = () => {
    clearTimeout(late);
    listener.opened();
  };
  socket.onclose = socket.onerror = end;
  socket.onmessage = ({ data }: MessageEvent<unknown>) => {
    try {
      if (!(data instanceof ArrayBuffer)) throw new ProtocolError();
      listener.frames(splitMessage(new Uint8Array(data)));
    } catch {
      end();
    }
  };
  return {
    send: (frame) => socket.readyState === WebSocket.OPEN && socket.send(frame),
    close: end,
  };
}
