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
/** So long WebTransport alone is tried; then a WebSocket beside it, and what opens first is taken. */
const HEAD_START_MS = 400;
/** After it came to nothing WebTransport is not tried again for this long. */
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
    socket.onmessage = socket.onclose = socket.onerror = null;
    // A browser writes the relay's address to its console for one that is closed before it is open.
    socket.onopen = () => socket.close();
    if (socket.readyState !== WebSocket.CONNECTING) socket.close();
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
    if (!there || !hasWebTransport() || performance.now() < this.avoidUntil) {
      this.carried = "websocket";
      return openSocket(watchUrl(this.link), listener);
    }
    const first: Open = (own) => openWebTransport(`${there.url}/watch`, there.hashes, own);
    const race = new Race(listener, first, (own) => openSocket(watchUrl(this.link), own), (won) => {
      this.carried = won === 0 ? "webtransport" : "websocket";
      if (won !== 0) this.avoid();
    });
    return race.begin();
  }

  /** The last connection came about and carried nothing: WebTransport is not the way for now. */
  distrust(): void {
    if (this.carried === "webtransport") this.avoid();
  }

  private avoid(): void {
    this.avoidUntil = performance.now() + AVOID_MS;
  }
}

type Open = (listener: Listener) => Connection;

/** Two ways: the second begins when the first takes long, or fails. Whichever opens first is taken, and the other one closed. */
class Race implements Connection {
  private readonly running = new Set<Connection>();
  private taken: Connection | null = null;
  private waiting: ReturnType<typeof setTimeout> | null = null;
  private over = false;

  constructor(private readonly listener: Listener, private readonly first: Open, private readonly second: Open, private readonly won: (which: number) => void) {}

  begin(): Connection {
    this.waiting = setTimeout(() => this.follow(), HEAD_START_MS);
    this.enter(this.first, 0);
    return this;
  }

  send(frame: Uint8Array<ArrayBuffer>): void {
    this.taken?.send(frame);
  }

  close(): void {
    this.over = true;
    this.rest();
    for (const way of [...this.running]) way.close();
  }

  private follow(): void {
    if (this.waiting === null) return;
    this.rest();
    this.enter(this.second, 1);
  }

  private rest(): void {
    if (this.waiting !== null) clearTimeout(this.waiting);
    this.waiting = null;
  }

  private enter(open: Open, which: number): void {
    const own: Connection = open({
      opened: () => this.opened(own, which),
      frames: (frames) => own === this.taken && this.listener.frames(frames),
      closed: () => this.closed(own),
    });
    this.running.add(own);
  }

  private opened(own: Connection, which: number): void {
    this.rest();
    this.taken = own;
    for (const other of [...this.running]) if (other !== own) other.close();
    this.won(which);
    this.listener.opened();
  }

  private closed(own: Connection): void {
    this.running.delete(own);
    if (this.taken && this.taken !== own) return;
    if (!this.taken && !this.over) this.follow();
    if (!this.running.size) this.listener.closed();
  }
}

/** A connection that was begun before there was anything to say on it: what it came to is told to whoever takes it. */
export class Reach implements Listener {
  readonly connection: Connection;
  over = false;
  private open = false;
  private taker: Listener | null = null;

  constructor(ways: Ways) {
    this.connection = ways.open(this);
  }

  /** Takes it: what happened is told at once. */
  take(taker: Listener): void {
    this.taker = taker;
    if (this.open) taker.opened();
  }

  opened(): void {
    this.open = true;
    this.taker?.opened();
  }

  frames(frames: Frame[]): void {
    this.taker?.frames(frames);
  }

  closed(): void {
    this.over = true;
    this.taker?.closed();
  }
}
