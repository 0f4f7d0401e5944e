// eventsource, the library for server-sent events outside browsers, on the drop-in route `/fanout/subscribe`.
//
// Parameters, one line of JSON on stdin: url, headers (of the subscription), confirmed (so many chunks are awaited);
// optional timeout (s). Prints a line per event of the relay, and at the end {ok, type, chunks: [{index, length, sha256}],
// states}. It never connects a second time.

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { EventSource } from "eventsource";

const params = JSON.parse((await createInterface({ input: process.stdin })[Symbol.asyncIterator]().next()).value);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const seen = { type: null, chunks: [], states: [] };

function done(ok, error) {
  source.close();
  tell({ ok, ...(error ? { error } : {}), ...seen });
  process.exit(ok ? 0 : 1);
}

let asked = 0;
const source = new EventSource(`${params.url}/fanout/subscribe`, {
  fetch: async (url, options) => {
    asked += 1;
    if (asked > 1) return done(false, "asked again");
    const answer = await fetch(url, { ...options, headers: { ...options.headers, ...params.headers } });
    seen.type = answer.headers.get("content-type");
    return answer;
  },
});

function settled() {
  const confirmed = seen.states.filter((state) => state.state === "confirmed").length;
  if (confirmed === params.confirmed) done(true);
}

const on = (name, heard) =>
  source.addEventListener(name, (event) => {
    const data = JSON.parse(event.data);
    heard(data);
    tell({ event: name });
    settled();
  });
on("relay_ready", () => {});
on("relay_chunk", (data) => {
  const bytes = Buffer.from(data.payload_b64, "base64");
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  seen.chunks.push({ index: data.chunk_index, length: bytes.length, sha256 });
});
on("relay_chunk_state", (data) => seen.states.push({ index: data.chunk_index, state: data.state }));
source.onerror = (event) => done(false, `${event.code ?? ""} ${event.message ?? ""}`);
setTimeout(() => done(false, "it took too long"), 1000 * (params.timeout ?? 30));
