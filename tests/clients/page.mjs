// Chromium as a contact: opens the contact's page as it is committed (client/web/dist) and looks at it as a person does.
//
// First prints {"event": "origins", "origin"}: where it serves the page. Then reads one line of parameters: scenario, core,
// account_token, session_file (incident and group, as the capture client writes it) or session, relay (as the link has it), key
// (the group key, base64url), shots (a directory, optional), args (more of the browser's, optional). {"event": "do", "what"} asks whoever started it for something and
// waits for a line. Last prints {"ok", …}; 0 if everything was as it must be.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { scenarios } from "./page_scenarios.mjs";
import { thin } from "./page_thin.mjs";

const emit = (value) => console.log(JSON.stringify(value));
const dist = new URL("../../client/web/dist/", import.meta.url);
const types = { html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
/** What a host of the page says, as devcore does: the policy of the page's own meta element, and what only a header can say. */
const policy = `${/http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(readFileSync(new URL("index.html", dist), "utf8"))[1]}; frame-ancestors 'none'`;
/** How long anything may take that must come, on a busy machine. */
const PATIENCE_MS = 70_000;

function host() {
  const server = createServer((request, response) => {
    const name = new URL(request.url, "http://page").pathname.slice(1) || "index.html";
    const file = new URL(name, dist);
    if (!types[name.split(".").pop()] || !/^[a-z.]+$/.test(name) || !existsSync(file)) return response.writeHead(404).end();
    const headers = { "content-type": types[name.split(".").pop()], "content-security-policy": policy, "cache-control": "no-cache" };
    response.writeHead(200, { ...headers, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff" }).end(readFileSync(file));
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

// Varint of RFC 9000 at `at`: [value, position after it].
function varint(bytes, at) {
  const size = 1 << (bytes[at] >> 6);
  let value = bytes[at] & 0x3f;
  for (let i = 1; i < size; i++) value = value * 256 + bytes[at + i];
  return [value, at + size];
}

/** Counts what the relay sends over WebSockets, as the browser's network stack sees it. */
class Wire {
  bytes = { audio_priority: 0, live_preview: 0 };
  sockets = 0;
  handles = new Map();

  async watch(context, page, asked) {
    const session = await context.newCDPSession(page);
    session.on("Network.webSocketCreated", ({ url }) => (this.sockets++, this.handles.clear(), asked.add(url)));
    session.on("Network.webTransportCreated", ({ url }) => asked.add(url));
    session.on("Network.webSocketFrameReceived", ({ response }) => response.opcode === 2 && this.message(Buffer.from(response.payloadData, "base64")));
    await session.send("Network.enable");
  }

  message(bytes) {
    for (let at = 0; at < bytes.length; ) {
      const kind = varint(bytes, at), length = varint(bytes, kind[1]);
      const body = bytes.subarray(length[1], length[1] + length[0]);
      at = length[1] + length[0];
      if (kind[0] === 0x32) {
        const { handle, variant } = JSON.parse(body);
        this.handles.set(handle, variant);
      } else if (kind[0] === 0x33) {
        this.bytes[this.handles.get(varint(body, 0)[0])] += body.length;
      }
    }
  }
}

const hostOf = (url) => new URL(url.replace(/^blob:/, "")).host;

/** One person's browser: its page, what it says, and what a person could see. */
class Person {
  wire = new Wire();
  said = [];
  /** Addresses that were asked for anything, and the hosts of the links that were opened: no other one may be among them. */
  asked = new Set();
  named = new Set();

  constructor(context) {
    this.context = context;
    context.on("request", (request) => this.asked.add(request.url()));
  }

  /** A tab of its own, empty. */
  async tab() {
    this.page = await this.context.newPage();
    this.page.on("console", (message) => this.said.push(`${message.type()}: ${message.text()}`));
    this.page.on("pageerror", (error) => this.said.push(`error: ${error.stack}`));
    await this.wire.watch(this.context, this.page, this.asked);
  }

  open(link) {
    const [page, text] = link.split("#w1.");
    const { relay, core, wt } = text ? JSON.parse(Buffer.from(text, "base64url")) : {};
    for (const url of [page, relay, core, wt?.url]) if (url) this.named.add(hostOf(url));
    return this.page.goto(link);
  }

  /** Hosts that were asked for something, all of which the links name. */
  hosts() {
    const hosts = [...new Set([...this.asked].map(hostOf))];
    const others = hosts.filter((host) => !this.named.has(host));
    assert.deepEqual(others, [], `asked beside ${[...this.named]}`);
    return hosts;
  }

  /** How many seconds what plays is behind the newest that is whole here, looked at for a while: by nine looks of ten at most, and how often it stood still. */
  behind(id, seconds) {
    return this.page.evaluate(async ([id, seconds]) => {
      const element = document.getElementById(id);
      const looks = [];
      let [stood, before] = [0, null];
      for (const end = performance.now() + seconds * 1000; performance.now() < end; ) {
        const { buffered, currentTime } = element;
        looks.push(buffered.end(buffered.length - 1) - currentTime);
        if (currentTime === before && looks.length > 1) stood++;
        before = currentTime;
        await new Promise((go) => setTimeout(go, 100));
      }
      looks.sort((a, b) => a - b);
      return { most: looks[Math.floor(looks.length * 0.9)], farthest: looks.at(-1), stood, looks: looks.length };
    }, [id, seconds]);
  }

  /** What stands on the page. */
  look() {
    return this.page.evaluate(() => {
      const by = (id) => document.getElementById(id);
      const text = (id) => (by(id) && by(id).getClientRects().length ? by(id).textContent : "");
      const { phone, screen } = document.documentElement.dataset;
      const marks = [...document.querySelectorAll(".row .mark")].map(({ dataset, title }) => ({ ...dataset, index: Number(dataset.index), title }));
      const [picture, sound] = [by("picture"), by("sound")];
      return {
        phone, screen, marks, heard: text("heard"), trouble: by("trouble")?.dataset.trouble, safe: text("safe"), unsafe: text("unsafe"), playing: text("playing"),
        notice: text("notice"), status: by("status")?.textContent, body: document.body.innerText, hash: location.hash, url: location.href,
        picture: picture?.currentTime, sound: sound?.currentTime, quiet: !sound || sound.paused || sound.muted, saved: text("saved"),
        pictureEnd: picture?.buffered.length ? picture.buffered.end(picture.buffered.length - 1) : 0,
      };
    });
  }

  /** Waits until what stands there `is` so. */
  async until(what, is, patience = PATIENCE_MS) {
    emit({ event: "until", what });
    const end = Date.now() + patience;
    let seen;
    do {
      // A page that is being left answers nothing.
      seen = (await this.look().catch(() => null)) ?? seen;
      if (seen && is(seen)) return seen;
      await new Promise((go) => setTimeout(go, 100));
    } while (Date.now() < end);
    throw new Error(`never: ${what}; ${this.said.join("; ")} ${JSON.stringify({ ...seen, body: undefined, marks: seen?.marks.map((m) => `${m.lane[0]}${m.index} ${m.state}`) })}`);
  }

  /** Goes from the page's beginning with the Tab key; what it comes to, until `last`. */
  async walk(last) {
    await this.page.evaluate(() => (document.activeElement?.blur(), getSelection()?.removeAllRanges()));
    const order = [];
    while (order.length < 20 && order.at(-1) !== last) {
      await this.page.keyboard.press("Tab");
      order.push(await this.page.evaluate(() => document.activeElement.id));
    }
    return order;
  }

  async enter(id) {
    await this.page.locator(`#${id}`).focus();
    await this.page.keyboard.press("Enter");
  }

  /** What a checker of pages would say: names, headings, ids, and contrast of what is written. */
  async accessible(what) {
    const wrong = await this.page.evaluate(check);
    assert.deepEqual(wrong, [], what);
  }

  async shot(params, name) {
    if (!params.shots) return;
    mkdirSync(params.shots, { recursive: true });
    for (const width of [360, 1280]) {
      for (const scheme of ["light", "dark"]) {
        await this.page.setViewportSize({ width, height: width === 360 ? 760 : 800 });
        await this.page.emulateMedia({ colorScheme: scheme });
        await this.page.waitForTimeout(250);
        const wide = await this.page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
        assert.ok(!wide, `${name} is wider than ${width} pixels`);
        await this.accessible(`${name}, ${width}, ${scheme}`);
        await this.page.screenshot({ path: `${params.shots}/${name}-${width}-${scheme}.png`, fullPage: true });
      }
    }
  }
}

/** Runs in the page. */
function check() {
  const wrong = [];
  const seen = (element) => element.getClientRects().length > 0 && !element.closest(".unseen, [aria-hidden=true]");
  const all = (what) => [...document.querySelectorAll(what)].filter(seen);
  const named = (element) => (element.getAttribute("aria-label") ?? element.closest("label")?.textContent ?? element.textContent).trim();
  for (const element of all("button, input, [tabindex='0'], a")) if (!named(element)) wrong.push(`${element.id} has no name`);
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  if (new Set(ids).size !== ids.length) wrong.push("an id stands twice");
  if (all("h1").length !== 1) wrong.push(`${all("h1").length} headings of the page`);
  if (!document.documentElement.lang || !document.title || !document.querySelector("[role=status]") || !document.querySelector("main")) wrong.push("language, title, status or main");
  const colour = (text) => (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((part) => ((part /= 255) <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
  const behind = (element) => {
    if (!element) return colour(getComputedStyle(document.documentElement).backgroundColor).slice(0, 3);
    const own = colour(getComputedStyle(element).backgroundColor);
    return own[3] === 0 ? behind(element.parentElement) : over(own, own[3] === undefined ? own : behind(element.parentElement));
  };
  const blocks = all("h1, p, button, label, li, strong, .chip, time").filter((element) => !element.matches(".overlay") && element.textContent.trim());
  for (const [i, one] of blocks.entries()) {
    for (const other of blocks.slice(i + 1)) {
      if (one.contains(other) || other.contains(one)) continue;
      const [a, b] = [one, other].map((element) => element.getBoundingClientRect());
      const over = [Math.min(a.right, b.right) - Math.max(a.left, b.left), Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)];
      if (over.every((size) => size > 1)) wrong.push(`${one.textContent.slice(0, 30)} lies over ${other.textContent.slice(0, 30)}`);
    }
  }
  for (const element of all("body *")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim()).map((node) => node.data.trim());
    // What lies over the picture has any colour behind it; it has a ground of its own.
    if (!words.length || element.matches(":disabled")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const [one, other] = [light(over(colour(style.color), ground)), light(ground)].sort((a, b) => b - a);
    const big = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && Number(style.fontWeight) >= 700);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < (big ? 3 : 4.5)) wrong.push(`contrast ${ratio.toFixed(2)}: ${words[0].slice(0, 30)} ${style.color} on ${ground.map(Math.round)}`);
  }
  return wrong;
}

/** A way to the relay that can be cut and mended. */
class Way {
  sockets = new Set();
  cut = false;

  constructor(relay) {
    const { hostname, port } = new URL(relay);
    this.server = createTcpServer((socket) => {
      if (this.cut) return socket.destroy();
      const onward = connect(Number(port), hostname);
      for (const [one, other] of [[socket, onward], [onward, socket]]) {
        this.sockets.add(one);
        one.on("error", () => other.destroy()).on("close", () => (other.destroy(), this.sockets.delete(one))).pipe(other);
      }
    });
  }

  async open() {
    await new Promise((ready) => this.server.listen(0, "127.0.0.1", ready));
    return `http://127.0.0.1:${this.server.address().port}`;
  }

  break() {
    this.cut = true;
    for (const socket of this.sockets) socket.destroy();
  }

  mend() {
    this.cut = false;
  }
}

/** What the scenarios work with. */
class World {
  constructor(params, browser, origin, lines) {
    Object.assign(this, { params, browser, origin, lines, people: [] });
  }

  async person(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 360, height: 760 }, acceptDownloads: true, ...options.context });
    if (options.before) await context.addInitScript(options.before);
    const person = new Person(context);
    await person.tab();
    this.people.push(person);
    return person;
  }

  /** Asks whoever started this program. */
  async ask(what) {
    emit({ event: "do", what });
    await this.lines.next();
  }

  async account(method, path, body) {
    const headers = { authorization: `Bearer ${this.params.account_token}`, "content-type": "application/json" };
    const answer = await fetch(this.params.core + path, { method, headers, body: JSON.stringify(body) });
    assert.ok(answer.ok, `${path}: ${answer.status}`);
    const text = await answer.text();
    return text ? JSON.parse(text) : null;
  }

  async session() {
    while (!this.params.session && !existsSync(this.params.session_file)) await new Promise((go) => setTimeout(go, 50));
    return this.params.session ?? JSON.parse(readFileSync(this.params.session_file, "utf8"));
  }

  /** A relay address whose way can be cut. */
  async way() {
    const way = new Way(this.params.relay);
    return [way, await way.open()];
  }

  async grants() {
    const { incident, group } = await this.session();
    return `/v1/incidents/${incident}/groups/${group}/grants`;
  }

  async grant() {
    return (await this.account("POST", await this.grants(), {})).grant;
  }

  async revoke(grant) {
    await this.account("POST", `${await this.grants()}/${grant.id}/revoke`, {});
  }

  link(grant, more = {}) {
    const members = { relay: this.params.relay, core: this.params.core, grant: grant.secret, key: this.params.key, ...more };
    return `${this.origin}/#w1.${Buffer.from(JSON.stringify(members)).toString("base64url")}`;
  }

  /** Nothing that was said on a console names anybody, and only the browser itself said anything. */
  quiet(...secrets) {
    for (const { said } of this.people) {
      for (const line of said) {
        assert.match(line, /^error: (Failed to load resource|WebSocket connection to|Access to fetch|Failed to establish)/, line);
        for (const secret of [this.params.key, ...secrets]) assert.ok(!line.includes(secret), "a secret in the console");
      }
    }
  }
}

const server = await host();
const origin = `http://127.0.0.1:${server.address().port}`;
emit({ event: "origins", origin });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const params = JSON.parse((await lines.next()).value);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", ...(params.args ?? [])],
});
let result;
try {
  const world = new World(params, browser, origin, lines);
  result = { ok: true, ...(await { ...scenarios, thin }[params.scenario](world)) };
  for (const person of world.people) person.hosts();
} catch (error) {
  result = { ok: false, error: String(error?.stack ?? error) };
}
await browser.close();
emit(result);
server.close();
process.exit(result.ok ? 0 : 1);
