// Runs in Chromium: uploads with fetch and over a WebSocket, and reads /watch as it streams. Formats as in
// docs/protocol.md.

const HELLO = 0x01, OFFER = 0x02, CAPTURE_PIECE = 0x03, SEND = 0x12, CAPTURE_STATE = 0x13, CREDIT = 0x14, BYE = 0x16;
const WATCH = 0x21, WATCHING = 0x31, CHUNK = 0x32, PIECE = 0x33, COMPLETE = 0x34, STATE = 0x36, ENDING = 0x3a;

// Varint of RFC 9000 at `at`: [value, position after it], or null.
function varint(bytes, at) {
  if (at >= bytes.length) return null;
  const size = 1 << (bytes[at] >> 6);
  if (at + size > bytes.length) return null;
  let value = bytes[at] & 0x3f;
  for (let i = 1; i < size; i++) value = value * 256 + bytes[at + i];
  return [value, at + size];
}

// The same, written; 30 bits are enough here.
function toVarint(value) {
  if (value < 64) return [value];
  if (value < 1 << 14) return [0x40 | (value >> 8), value & 0xff];
  return [0x80 | (value >> 24), (value >> 16) & 0xff, (value >> 8) & 0xff, value & 0xff];
}

function joined(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function frame(kind, body) {
  return joined(toVarint(kind), toVarint(body.length), body);
}

const control = (kind, value) => frame(kind, new TextEncoder().encode(JSON.stringify(value)));
const read = (body) => JSON.parse(new TextDecoder().decode(body));

// Takes whole frames out of bytes as they come.
class Decoder {
  buffer = new Uint8Array(0);

  push(bytes) {
    this.buffer = joined(this.buffer, bytes);
    const frames = [];
    let at = 0;
    for (;;) {
      const kind = varint(this.buffer, at);
      const length = kind && varint(this.buffer, kind[1]);
      if (!length || this.buffer.length < length[1] + length[0]) break;
      at = length[1] + length[0];
      frames.push([kind[0], this.buffer.slice(length[1], at)]);
    }
    this.buffer = this.buffer.slice(at);
    return frames;
  }
}

async function hex(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A body that goes out piece by piece, as a camera would give it.
function streamed(bytes) {
  const size = Math.max(8192, bytes.length >> 6);
  let at = 0;
  return new ReadableStream({
    async pull(controller) {
      await new Promise((go) => setTimeout(go, 5));
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
      if (at >= bytes.length) controller.close();
    },
  });
}

const load = async (source) => new Uint8Array(await (await fetch(source)).arrayBuffer());

// One upload: {mode: "plain" | "stream" | "ws", source, …what that needs}.
export async function put(how) {
  const bytes = await load(how.source);
  try {
    return { mode: how.mode, ...(how.mode === "ws" ? await capture(how, bytes) : await send(how, bytes)) };
  } catch (error) {
    return { mode: how.mode, error: String(error) };
  }
}

async function send({ url, headers, mode }, bytes) {
  const init = mode === "stream" ? { body: streamed(bytes), duplex: "half" } : { body: bytes };
  const answer = await fetch(url, { method: "PUT", headers, ...init });
  const text = await answer.text();
  return { status: answer.status, body: text ? JSON.parse(text) : null, node: answer.headers.get("waystation-node") };
}

// Frames of a WebSocket, one after the other; ends with it.
async function* frames(socket) {
  const waiting = [];
  let wake;
  const came = (what) => (waiting.push(what), wake?.());
  socket.onmessage = ({ data }) => came(new Uint8Array(data));
  socket.onclose = ({ code }) => came({ code });
  for (;;) {
    while (!waiting.length) await new Promise((go) => (wake = go));
    const next = waiting.shift();
    if (!(next instanceof Uint8Array)) return;
    yield* new Decoder().push(next);
  }
}

function opened(url, subprotocol) {
  const socket = new WebSocket(url, subprotocol);
  socket.binaryType = "arraybuffer";
  return new Promise((ok, fail) => {
    socket.onopen = () => ok(socket);
    socket.onerror = () => fail(new Error("no WebSocket"));
  });
}

async function capture({ socket: url, capability, offer }, bytes) {
  const socket = await opened(url, "waystation.capture.v1");
  const states = [];
  let sent = 0, upto = 0;
  socket.send(joined(
    control(HELLO, { protocol: 1, capabilities: [capability] }),
    control(OFFER, { ...offer, handle: 1, length: bytes.length, sha256: await hex(bytes) }),
  ));
  for await (const [kind, body] of frames(socket)) {
    if (kind === BYE) return { error: read(body).reason };
    if (kind === SEND) ({ offset: sent, credit: upto } = read(body)), (upto += sent);
    if (kind === CREDIT) upto += read(body).bytes;
    for (; sent < Math.min(upto, bytes.length); ) {
      const piece = bytes.slice(sent, Math.min(sent + 16384, upto));
      socket.send(frame(CAPTURE_PIECE, joined(toVarint(1), toVarint(sent), piece)));
      sent += piece.length;
    }
    if (kind !== CAPTURE_STATE) continue;
    const { state, error } = read(body);
    if (error) return { states, error: error.code };
    states.push(state);
    if (state === "confirmed") {
      socket.close(1000);
      return { status: 201, states, subprotocol: socket.protocol };
    }
  }
  return { states, error: "the WebSocket ended early" };
}

// What a contact has seen.
class Seen {
  open = new Map();
  result = { status: null, chunks: [], states: {}, watching: null, ending: null };

  constructor({ chunks, state }, tell) {
    Object.assign(this, { want: chunks, state, tell });
  }

  enough() {
    const { chunks, states, ending } = this.result;
    const reached = Object.values(states).filter((history) => history.includes(this.state)).length;
    return ending || (chunks.length >= this.want && (!this.state || reached >= this.want));
  }

  note({ stream, index, state }) {
    const history = (this.result.states[`${stream}/${index}`] ??= []);
    if (history.at(-1) !== state) history.push(state);
  }

  piece(body) {
    const handle = varint(body, 0), offset = varint(body, handle[1]), chunk = this.open.get(handle[0]);
    if (offset[0] !== chunk.bytes.length) throw new Error("a PIECE that leaves a gap");
    chunk.bytes = joined(chunk.bytes, body.slice(offset[1]));
    this.tell("piece", { stream: chunk.stream, index: chunk.index, received: chunk.bytes.length });
  }

  async take(kind, body) {
    if (kind === PIECE) this.piece(body);
    else if (kind === WATCHING) this.tell("watching", (this.result.watching = read(body)));
    else if (kind === ENDING) this.result.ending = read(body);
    else if (kind === STATE) this.note(read(body));
    else if (kind === CHUNK) {
      const value = read(body);
      this.open.set(value.handle, { ...value, bytes: new Uint8Array(0) });
      this.note(value);
    } else if (kind === COMPLETE) {
      const { handle } = read(body), { bytes, ...chunk } = this.open.get(handle);
      this.open.delete(handle);
      const intact = bytes.length === chunk.length && (await hex(bytes)) === chunk.sha256;
      this.result.chunks.push({ ...chunk, received: bytes.length, intact });
    }
  }
}

// Reads /watch until `chunks` are complete and, if given, in `state`: {mode: "fetch" | "ws" | "wt", …what that needs}.
export async function watch(how, tell) {
  const seen = new Seen(how, tell);
  try {
    await { ws: watchSocket, wt: watchSession, fetch: watchStream }[how.mode](how, seen);
    return seen.enough() ? seen.result : { ...seen.result, error: "it ended early" };
  } catch (error) {
    return { ...seen.result, error: String(error) };
  }
}

async function watchStream({ url, headers }, seen) {
  const stop = new AbortController();
  const answer = await fetch(url, { headers, signal: stop.signal });
  seen.result.status = answer.status;
  if (answer.status !== 200) throw new Error((await answer.json()).error.code);
  const decoder = new Decoder(), reader = answer.body.getReader();
  while (!seen.enough()) {
    const { done, value } = await reader.read();
    if (done) break;
    for (const one of decoder.push(value)) await seen.take(...one);
  }
  stop.abort();
}

async function watchSocket({ socket: url, hello }, seen) {
  const socket = await opened(url, "waystation.watch.v1");
  seen.result.status = 200;
  socket.send(control(WATCH, hello));
  for await (const one of frames(socket)) {
    await seen.take(...one);
    if (seen.enough()) break;
  }
  socket.close(1000);
}

// Each chunk comes on a stream of its own, everything else on the one that the page opens.
async function watchSession({ url, hash, hello }, seen) {
  const serverCertificateHashes = [{ algorithm: "sha-256", value: new Uint8Array(hash).buffer }];
  const session = new WebTransport(url, { serverCertificateHashes });
  await session.ready;
  seen.result.status = 200;
  const { readable, writable } = await session.createBidirectionalStream();
  await writable.getWriter().write(control(WATCH, hello));
  const kinds = new Set();
  let done;
  const enough = new Promise((ok, fail) => (done = { ok, fail }));
  const take = async (stream, from) => {
    const decoder = new Decoder(), reader = stream.getReader();
    for (;;) {
      const { done: ended, value } = await reader.read();
      if (ended) return;
      for (const [kind, body] of decoder.push(value)) {
        kinds.add(`${from} ${kind}`);
        await seen.take(kind, body);
      }
      if (seen.enough()) done.ok();
    }
  };
  const chunks = async () => {
    const streams = session.incomingUnidirectionalStreams.getReader();
    for (;;) {
      const { done: ended, value } = await streams.read();
      if (ended) return;
      take(value, "chunk").catch(() => {});
    }
  };
  take(readable, "control").then(done.ok, done.fail);
  chunks().catch(done.fail);
  await enough;
  seen.result.kinds = [...kinds];
  session.close();
  const { closeCode, reason } = await session.closed;
  seen.result.closed = { closeCode, reason };
}
