import assert from "node:assert/strict";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Core, CoreRefusal, retryAfter } from "../src/io/core";
import { Shelf } from "../src/io/kept";

/** A core that answers so, for as long as `use` takes. */
async function answering(answer: RequestListener, use: (core: Core) => Promise<void>): Promise<void> {
  const server = createServer(answer);
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  try {
    await use(new Core(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, "grant"));
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
const refused = (why: string, afterMs = 0) => (error: unknown) => error instanceof CoreRefusal && error.why === why && error.afterMs === afterMs;

test("a chunk is not longer than the core's list said", async () => {
  await answering((_, response) => response.end(new Uint8Array(11).fill(7)), async (core) => {
    assert.equal((await core.bytes("ref", 11)).length, 11);
    await assert.rejects(core.bytes("ref", 10), refused("not_found"));
  });
});

test("an answer without end is cut off, of success and of failure", async () => {
  for (const status of [200, 500]) {
    const endless: RequestListener = (_, response) => {
      response.writeHead(status, { "content-type": "application/json" });
      const more = (): void => {
        while (!response.destroyed && response.write(" ".repeat(65_536)));
      };
      response.on("drain", more);
      more();
    };
    await answering(endless, async (core) => assert.rejects(core.chunks(undefined), CoreRefusal));
  }
});

test("an answer that is no object is none", async () => {
  for (const body of ["[]", "null", "1", "{", ""]) {
    await answering((_, response) => response.end(body), async (core) => assert.rejects(core.chunks(undefined), refused("away"), body));
  }
});

test("the core says how long to wait, within reason", async () => {
  assert.deepEqual(["5", "0.5", "-1", "1e9", "Infinity", "soon", null].map(retryAfter), [5000, 500, 0, 120_000, 0, 0, 0]);
  const busy: RequestListener = (_, response) => response.writeHead(429, { "retry-after": "7" }).end('{"error":{"code":"rate_limited"}}');
  await answering(busy, async (core) => assert.rejects(core.capability(), refused("away", 7000)));
  const gone: RequestListener = (_, response) => response.writeHead(403).end('{"error":{"code":"grant_revoked"}}');
  await answering(gone, async (core) => assert.rejects(core.capability(), refused("revoked")));
});

test("what the shelf frees is told, pictures before sound", () => {
  const freed: string[] = [];
  const shelf = new Shelf((stream, index) => freed.push(`${stream}${index}`), 30);
  const piece = () => new Uint8Array(10);
  shelf.put("a", 1, "audio", piece());
  shelf.put("v", 1, "video", piece());
  shelf.put("a", 2, "audio", piece());
  shelf.put("a", 2, "audio", piece());
  assert.deepEqual(freed, []);
  shelf.put("a", 3, "audio", piece());
  shelf.put("a", 4, "audio", piece());
  assert.deepEqual(freed, ["v1", "a1"]);
  assert.deepEqual([shelf.get("a", 1), shelf.get("a", 2)?.length], [undefined, 10]);
});
