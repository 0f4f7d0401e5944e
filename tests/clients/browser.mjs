// Chromium as capture client and contact: fetch uploads, plain and streaming, and a streaming read of /watch, over
// HTTP/3; the same over WebSocket; and WebTransport, for which the certificate is known by its hash.
//
// First prints {"event": "origins", "origin", "other_origin"}: origins of the page it serves, of which a test lets the
// relay allow the first. Then reads one line of parameters: relay ("https://localhost:PORT"), ca (its certificate), puts
// ([{mode: "plain" | "stream" | "ws", file, capability, chunk, expect (list of statuses, null
// for none, default 200 and 201)}]), watch
// ({mode: "fetch" | "ws" | "wt", capability, lanes?, from?, chunks, state?}, optional), other (true: the other page tries the
// same), progress, timeout (s). Last prints what happened; 0 if everything did.

import { X509Certificate, createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const emit = (value) => console.log(JSON.stringify(value));
const sha256 = (bytes) => createHash("sha256").update(bytes).digest();

function chunkRef({ incident, stream, index }) {
  const parts = ["waystation-chunk-v1", incident, stream, String(index)].flatMap((text) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(Buffer.byteLength(text));
    return [length, Buffer.from(text)];
  });
  return sha256(Buffer.concat(parts)).subarray(0, 16).toString("base64url");
}

// RFC 9651: integers and strings are all a test needs here.
function dictionary(members) {
  const item = (value) => (typeof value === "number" ? String(value) : JSON.stringify(value));
  return Object.entries(members).map(([key, value]) => `${key}=${item(value)}`).join(", ");
}

// What the page sends for one PUT. A streamed body has no Content-Length, so the dictionary says the length.
function upload(relay, put, number) {
  const bytes = readFileSync(put.file);
  return {
    url: `${relay}/chunks/${chunkRef(put.chunk)}`,
    source: `/file/${number}`,
    mode: put.mode,
    socket: `${relay.replace("https", "wss")}/capture`,
    capability: put.capability,
    offer: put.chunk,
    headers: {
      authorization: `Bearer ${put.capability}`,
      "content-type": "application/octet-stream",
      "repr-digest": `sha-256=:${sha256(bytes).toString("base64")}:`,
      "waystation-chunk": dictionary({ ...put.chunk, length: bytes.length }),
    },
  };
}

function subscription(relay, watch, hash) {
  const headers = { authorization: `Bearer ${watch.capability}` };
  const hello = { protocol: 1, capability: watch.capability };
  const parts = [];
  if (watch.lanes) parts.push(`lanes=(${watch.lanes.map((lane) => JSON.stringify(lane)).join(" ")})`);
  if (watch.from) parts.push(dictionary({ from: watch.from }));
  if (parts.length) headers["waystation-watch"] = parts.join(", ");
  for (const key of ["lanes", "from"]) if (watch[key]) hello[key] = watch[key];
  const socket = `${relay.replace("https", "wss")}/watch`;
  const { mode, chunks = 1, state } = watch;
  return { mode, url: `${relay}/watch`, hash: [...hash], headers, socket, hello, chunks, state };
}

// Serves the page, its script and the files to upload.
function pageServer(files) {
  const script = readFileSync(new URL("browser_page.js", import.meta.url));
  const server = createServer((request, response) => {
    const file = files[Number(request.url.match(/^\/file\/(\d+)$/)?.[1])];
    if (request.url === "/") response.setHeader("content-type", "text/html").end("<!doctype html><title>client</title>");
    else if (request.url === "/page.js") response.setHeader("content-type", "text/javascript").end(script);
    else if (file) response.end(readFileSync(file));
    else response.writeHead(404).end();
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

// Protocols as the browser's network stack reports them, per method and path.
async function protocols(context, page, relay) {
  const seen = [], method = new Map();
  const session = await context.newCDPSession(page);
  session.on("Network.requestWillBeSent", (event) => method.set(event.requestId, event.request.method));
  session.on("Network.responseReceived", ({ requestId, type, response }) => {
    if (!response.url.startsWith(relay)) return;
    const path = new URL(response.url).pathname.split("/")[1];
    seen.push({ method: method.get(requestId), path, type, status: response.status, protocol: response.protocol });
  });
  await session.send("Network.enable");
  return seen;
}

async function fromElsewhere(context, params, origin, hash) {
  const page = await context.newPage();
  await page.goto(origin);
  const tries = params.puts.map((put, number) => ["put", upload(params.relay, put, number)]);
  if (params.watch) tries.push(["watch", subscription(params.relay, params.watch, hash)]);
  const refused = [];
  for (const one of tries) {
    refused.push(await page.evaluate(async ([name, argument]) => (await import("/page.js"))[name](argument, () => {}), one));
  }
  return refused;
}

// Fills `seen` as it goes, so that a test that runs out of time shows how far it came.
async function main(params, [origin, otherOrigin], seen) {
  const { host } = new URL(params.relay);
  const certificate = new X509Certificate(readFileSync(params.ca));
  const key = certificate.publicKey.export({ type: "spki", format: "der" });
  const hash = sha256(certificate.raw);
  const browser = await chromium.launch({
    executablePath: params.chromium ?? "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
      "--host-resolver-rules=MAP localhost 127.0.0.1",
      `--origin-to-force-quic-on=${host}`,
      `--ignore-certificate-errors-spki-list=${sha256(key).toString("base64")}`,
    ],
  });
  try {
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.exposeFunction("tell", (event, value) => params.progress && emit({ event, ...value }));
    await page.goto(origin);
    const requests = (seen.requests = await protocols(context, page, params.relay));
    const inPage = (name, argument) =>
      page.evaluate(async ([name, argument]) => (await import("/page.js"))[name](argument, window.tell), [name, argument]);
    const watching = params.watch && inPage("watch", subscription(params.relay, params.watch, hash));
    const puts = (seen.puts = []);
    for (const [number, put] of params.puts.entries()) puts.push(await inPage("put", upload(params.relay, put, number)));
    const watch = watching ? await watching : null;

    // The same from an origin the relay does not allow: the browser or the relay stops it.
    const refused = params.other ? await fromElsewhere(context, params, otherOrigin, hash) : null;
    const asked = (put, number) => (params.puts[number].expect ?? [200, 201]).includes(put.status ?? null);
    const ok =
      puts.every(asked) &&
      (refused === null || refused.every(({ error }) => error !== undefined)) &&
      (watch === null || (!watch.error && watch.status === 200 && watch.chunks.every((chunk) => chunk.intact))) &&
      requests.every(({ protocol }) => protocol === "h3");
    return { ok, browser: browser.version(), watch, refused };
  } finally {
    await browser.close();
  }
}

const files = [];
const server = await pageServer(files);
const port = server.address().port;
const origins = [`http://localhost:${port}`, `http://127.0.0.1:${port}`];
emit({ event: "origins", origin: origins[0], other_origin: origins[1] });
const line = await new Promise((got) => createInterface({ input: process.stdin }).once("line", got));
const params = JSON.parse(line);
files.push(...params.puts.map((put) => put.file));
const late = new Promise((_, fail) => setTimeout(() => fail(new Error("out of time")), (params.timeout ?? 60) * 1000));
const seen = {};
let result;
try {
  result = await Promise.race([main(params, origins, seen), late]);
} catch (error) {
  result = { ok: false, error: String(error) };
}
emit({ ...result, ...seen });
server.close();
process.exit(result.ok ? 0 : 1);
