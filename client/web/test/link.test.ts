import assert from "node:assert/strict";
import { test } from "node:test";
import { readKey, readLink, watchUrl, writeLink } from "../src/rules/link";

const secret = Buffer.alloc(32, 7).toString("base64url");
const good = { relay: "https://relay.example:4433/", core: "https://core.example", grant: secret, key: secret };

test("a link is read, and unknown members are ignored", () => {
  const link = readLink(`#${writeLink({ ...good, later: 1 })}`);
  assert.ok(link);
  assert.equal(watchUrl(link), "wss://relay.example:4433/watch");
  assert.deepEqual([link.core, link.grant, "key" in link], ["https://core.example", secret, false]);
  assert.deepEqual(readKey(`#${writeLink(good)}`), new Uint8Array(32).fill(7));
  assert.equal(readKey(""), null);
  assert.deepEqual(link.webTransport, { url: "https://relay.example:4433", hashes: [] });
});

test("without TLS only on this machine", () => {
  const local = readLink(writeLink({ ...good, relay: "http://127.0.0.1:1", core: "http://localhost:2" }));
  assert.equal(local && watchUrl(local), "ws://127.0.0.1:1/watch");
  assert.equal(local?.webTransport, undefined);
  assert.equal(readLink(writeLink({ ...good, relay: "http://relay.example" })), null);
  assert.equal(readLink(writeLink({ ...good, core: "http://core.example" })), null);
});

test("WebTransport has a place of its own, and hashes of the right length", () => {
  const hash = Buffer.alloc(32, 1).toString("base64url");
  const wt = { url: "https://127.0.0.1:9", hashes: [hash, "short", 3] };
  const link = readLink(writeLink({ ...good, relay: "http://127.0.0.1:1", wt }));
  assert.equal(link?.webTransport?.url, "https://127.0.0.1:9");
  assert.equal(link?.webTransport?.hashes.length, 1);
});

test("what is no link is none", () => {
  const bad: object[] = [
    { ...good, key: "AAAA" }, { ...good, grant: "x" }, { ...good, relay: "ftp://a" }, { ...good, relay: 1 },
    { ...good, core: "https://user@core" }, { ...good, core: "https://core/?q" }, [], {},
  ];
  for (const members of bad) assert.equal(readLink(writeLink(members)), null, JSON.stringify(members));
  for (const text of ["", "#", "#w1.", "#w2.e30", "#w1.!!", `#w1.${"A".repeat(9000)}`]) assert.equal(readLink(text), null, text);
});
