// tus-js-client, as its users call it: `tus.Upload` with options, and its callbacks.
//
// Parameters, one line of JSON on stdin: url, server_name, ca, capability, file, chunk; optional protocol ("tus-v1",
// "ietf-draft-03" or "ietf-draft-05"), with_upload (bytes go with the creation), part (bytes of one request), pause_at
// (stops once so many bytes are accepted, until "go on" comes), upload_url (path of an upload begun before), wait
// (`Prefer`), retries (how often), timeout (s). Prints a line per event: "paused" with the upload's path, "retry" with the
// status; then what became of it. It ends with 0 if the success callback came.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import tus from "tus-js-client";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const params = JSON.parse((await lines.next()).value);
const data = readFileSync(params.file);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const protocol = params.protocol ?? "tus-v1";

/** What is said of the chunk: as metadata of tus, or as the relay's own headers, which go with every request. */
function said() {
  const digest = createHash("sha256").update(data);
  const chunk = params.chunk;
  if (protocol === "tus-v1") {
    return { metadata: { ...chunk, sha256: digest.digest("hex") }, headers: {} };
  }
  const item = ([key, value]) => `${key}=${typeof value === "number" ? value : JSON.stringify(value)}`;
  const dictionary = [...Object.entries(chunk), ["length", data.length]].map(item).join(", ");
  return {
    metadata: {},
    headers: { "waystation-chunk": dictionary, "repr-digest": `sha-256=:${digest.digest("base64")}:` },
  };
}

const { metadata, headers } = said();
headers.authorization = `Bearer ${params.capability}`;
headers.prefer = `wait=${params.wait ?? 30}`;

function end(line) {
  tell(line);
  process.exit(line.ok ? 0 : 1);
}

const path = () => (upload.url ? new URL(upload.url).pathname : null);
let paused = false;
const upload = new tus.Upload(data, {
  protocol,
  endpoint: `${params.url}/chunks`,
  uploadUrl: params.upload_url ? params.url + params.upload_url : null,
  httpStack: new tus.DefaultHttpStack({ ca: readFileSync(params.ca), servername: params.server_name }),
  chunkSize: params.part ?? Number.POSITIVE_INFINITY,
  uploadDataDuringCreation: params.with_upload ?? false,
  retryDelays: Array(params.retries ?? 0).fill(200),
  metadata,
  headers,
  onShouldRetry: (error) => {
    tell({ event: "retry", status: error.originalResponse?.getStatus() ?? 0 });
    return true;
  },
  onChunkComplete: async (_, accepted) => {
    if (!paused && accepted >= (params.pause_at ?? Number.POSITIVE_INFINITY)) {
      paused = true;
      await upload.abort();
      tell({ event: "paused", accepted, path: path() });
      if ((await lines.next()).value !== "go on") end({ ok: false, error: "not told to go on" });
      upload.start();
    }
  },
  onSuccess: () => end({ ok: true, path: path() }),
  onError: (error) =>
    end({
      ok: false,
      status: error.originalResponse?.getStatus() ?? 0,
      body: error.originalResponse?.getBody() ?? null,
      error: String(error),
    }),
});
setTimeout(() => end({ ok: false, error: "it took too long" }), 1000 * (params.timeout ?? 30));
upload.start();
