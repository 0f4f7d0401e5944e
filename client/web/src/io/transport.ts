// How frames come from the relay: what every transport gives, and the WebSocket.

import { type Frame, ProtocolError, splitMessage } from "../rules/frames";
import { type Link, watchUrl } from "../rules/link";
import { hasWebTransport, openWebTransport } from "./webtransport";

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
/** So long WebTransport alone is tried; then a WebSocket is opened instead. */
const HEAD_START_MS = 2_000;
/** After a failure WebTransport is not tried again for this long. */
const AVOID_MS = 5 * 60_000;

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

/** WebTransport where it comes about soon, a WebSocket where not. */
export class Ways {
  /** Which one the last connection took. */
  carried: "" | "webtransport" | "websocket" = "";
  private avoidUntil = -Infinity;

  constructor(private readonly link: Link) {}

  open(listener: Listener): Connection {
    const there = this.link.webTransport;
    if (!there || !hasWebTransport() || performance.now() < this.avoidUntil) return this.socket(listener);
    let current: Connection;
    let [trying, over] = [true, false];
    const late = setTimeout(() => current.close(), HEAD_START_MS);
    const settled = (): void => {
      trying = false;
      clearTimeout(late);
    };
    const failed = (): void => {
      settled();
      if (over) return listener.closed();
      this.avoidUntil = performance.now() + AVOID_MS;
      current = this.socket(listener);
    };
    current = openWebTransport(`${there.url}/watch`, there.hashes, {
      opened: () => {
        settled();
        this.carried = "webtransport";
        listener.opened();
      },
      frames: (frames) => listener.frames(frames),
      closed: () => (trying ? failed() : listener.closed()),
    });
    return {
      send: (frame) => current.send(frame),
      close: () => {
        over = true;
        current.close();
      },
    };
  }

  /** The last connection came about and carried nothing: WebTransport is not the way for now. */
  distrust(): void {
    if (this.carried === "webtransport") this.avoidUntil = performance.now() + AVOID_MS;
  }

  private socket(listener: Listener): Connection {
    this.carried = "websocket";
    return openSocket(watchUrl(this.link), listener);
  }
}
