// Runs in Chromium: uploads with fetch and reads /watch as it streams. Formats as in docs/protocol.md.

const PIECE = 0x33, CHUNK = 0x32, COMPLETE = 0x34, STATE = 0x36, WATCHING = 0x31, ENDING = 0x3a;

// Varint of RFC 9000 at `at`: [value, position after it], or null.
function varint(bytes, at) {
  if (at >= bytes.length) return null;
  const size = 1 << (bytes[at] >> 6);
  if (at + size > bytes.length) return null;
  let value = bytes[at] & 0x3f;
  for (let i = 1; i < size; i++) value = value * 256 + bytes[at + i];
  return [value, at + size];
}

function joined(a, b) {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}

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
function streamed(bytes, size = 8192) {
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

// One PUT: {url, source, headers, mode: "plain" | "stream"}.
export async function put({ url, source, headers, mode }) {
  const bytes = new Uint8Array(await (await fetch(source)).arrayBuffer());
  const init = mode === "stream" ? { body: streamed(bytes), duplex: "half" } : { body: bytes };
  const began = performance.now();
  try {
    const answer = await fetch(url, { method: "PUT", headers, ...init });
    const text = await answer.text();
    return {
      mode, status: answer.status, body: text ? JSON.parse(text) : null,
      node: answer.headers.get("waystation-node"), ms: Math.round(performance.now() - began),
    };
  } catch (error) {
    return { mode, error: String(error) };
  }
}

// Reads /watch until `chunks` are complete and, if given, in `state`: {url, headers, chunks, state}.
export async function watch({ url, headers, chunks: want, state }, tell) {
  const stop = new AbortController();
  const open = new Map(), states = {}, chunks = [];
  const note = (value) => {
    const history = (states[`${value.stream}/${value.index}`] ??= []);
    if (history.at(-1) !== value.state) history.push(value.state);
  };
  const reached = () => Object.values(states).filter((history) => history.includes(state)).length;
  const result = { status: null, chunks, states, watching: null, ending: null };
  try {
    const answer = await fetch(url, { headers, signal: stop.signal });
    result.status = answer.status;
    if (answer.status !== 200) return { ...result, body: await answer.json() };
    const decoder = new Decoder(), reader = answer.body.getReader();
    while (!result.ending && (chunks.length < want || (state && reached() < want))) {
      const { done, value: bytes } = await reader.read();
      if (done) return { ...result, error: "the stream ended early" };
      for (const [kind, body] of decoder.push(bytes)) {
        if (kind === PIECE) {
          const handle = varint(body, 0), offset = varint(body, handle[1]), chunk = open.get(handle[0]);
          if (offset[0] !== chunk.bytes.length) throw new Error("a PIECE that leaves a gap");
          chunk.reads += 1;
          chunk.bytes = joined(chunk.bytes, body.slice(offset[1]));
          continue;
        }
        if (![CHUNK, COMPLETE, STATE, WATCHING, ENDING].includes(kind)) continue;
        const value = JSON.parse(new TextDecoder().decode(body));
        if (kind === WATCHING) tell("watching", (result.watching = value));
        else if (kind === ENDING) result.ending = value;
        else if (kind === STATE) note(value);
        else if (kind === CHUNK) {
          open.set(value.handle, { ...value, bytes: new Uint8Array(0), reads: 0 });
          note(value);
        } else {
          const { bytes: whole, ...chunk } = open.get(value.handle);
          open.delete(value.handle);
          const intact = whole.length === chunk.length && (await hex(whole)) === chunk.sha256;
          chunks.push({ ...chunk, received: whole.length, intact });
        }
      }
    }
    return result;
  } catch (error) {
    return { ...result, error: String(error) };
  } finally {
    stop.abort();
  }
}
