// What a contact does, and what the page must show then.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

/** How long a chunk of the recording is, seconds. */
const CHUNK = 2;
/** What plays live is in the newest whole chunk or the one before it; a playhead that is moved now and then may be a little late. */
const LIVE = 2 * CHUNK + 0.3;
const of = (marks, lane) => marks.filter((mark) => mark.lane === lane);
const every = (marks, state) => marks.length > 0 && marks.every((mark) => mark.state === state);
const here = (marks) => marks.filter((mark) => mark.here === "true");

/** Both lanes play live; the core goes and comes; sound only; a second contact; a reload; the phone goes silent. */
async function live(world) {
  const grant = await world.grant();
  await world.account("PUT", "/devcore/faults", { faults: [{ route: "commit", effect: "delay", ms: 1500 }] });
  const person = await world.person({ before: countLocks });
  await person.open(world.link(grant));

  // It plays before anybody taps, without sound, and the screen stays on; the link is out of the address bar.
  const first = await person.until("the picture moves", (seen) => seen.phone === "live" && seen.picture > 1 && here(seen.marks).length > 0);
  assert.deepEqual([first.hash, first.url.split("#").length, first.quiet], ["", 1, true]);
  await person.page.waitForFunction(() => window.locks === 1);
  await person.until("something seen is not safe yet", ({ marks }) => here(marks).some((mark) => mark.state === "unconfirmed"));
  const one = of((await person.look()).marks, "audio").at(-1).index;
  await person.until("that becomes safe", ({ marks, safe }) => of(marks, "audio").find((mark) => mark.index === one)?.state === "confirmed" && safe.startsWith("Safe up to"));
  await world.account("PUT", "/devcore/faults", { faults: [] });

  await person.page.click("#listen");
  const heard = await person.until("the sound moves", (seen) => !seen.quiet && seen.sound > 1);
  await person.until("sound and picture go on", (seen) => seen.sound > heard.sound + CHUNK && seen.picture > heard.picture + CHUNK);
  const apart = await person.until("they are in step", (seen) => Math.abs(seen.sound - seen.picture) < 0.2 && seen.pictureEnd - seen.picture < LIVE);
  const behind = await person.behind("sound", 5);
  assert.ok(behind.most <= LIVE, `${JSON.stringify(behind)} behind`);
  const asked = person.hosts();
  for (const url of [world.origin, world.params.core, world.params.relay]) assert.ok(asked.includes(new URL(url).host), `${url} was asked`);
  await person.shot(world.params, "live");

  // The core away: what comes is shown and not called safe; then it is safe.
  await world.account("PUT", "/devcore/faults", { faults: [], away_ms: 6000 });
  const away = await person.until("something waits for the core", ({ marks }) => here(marks).filter((mark) => mark.state === "unconfirmed").length >= 4);
  assert.match(away.unsafe, /not yet safe$/);
  await person.shot(world.params, "core-away");
  const waited = away.marks.filter((mark) => mark.state === "unconfirmed").map((mark) => `${mark.lane}${mark.index}`);
  await person.until("the core is back", ({ marks }) => waited.every((name) => marks.some((mark) => `${mark.lane}${mark.index}` === name && mark.state === "confirmed")));

  // Sound only: not one byte of picture more.
  await person.page.click("label.switch");
  await person.until("sound only", ({ body }) => body.includes("Sound only: no picture is being sent"));
  const soundAt = of((await person.look()).marks, "audio").at(-1).index;
  // What was on its way when it was asked for may still come.
  await person.until("the next sound", ({ marks }) => of(marks, "audio").at(-1).index > soundAt);
  const before = { ...person.wire.bytes };
  await person.until("more sound", ({ marks }) => of(marks, "audio").at(-1).index > soundAt + 2);
  assert.equal(person.wire.bytes.live_preview, before.live_preview, "picture bytes were sent");
  assert.ok(person.wire.bytes.audio_priority > before.audio_priority);
  await person.page.click("label.switch");
  await person.until("the picture comes again", ({ marks }) => of(marks, "video").at(-1).index > soundAt + 2);
  const gap = of((await person.look()).marks, "video").filter((mark) => mark.here === "false");
  assert.ok(gap.length > 0, "the picture that was not sent has its marks");

  // Somebody who comes late has the window from its start, and plays at its end.
  const late = await world.person({ context: { viewport: { width: 1280, height: 800 } } });
  const second = await world.grant();
  // Where the relay has WebTransport it is taken; where not, a WebSocket.
  await late.open(world.link(second, { wt: world.params.wt }));
  const window = await late.until("the window from its start", ({ marks, picture }) => here(of(marks, "audio"))[0]?.index === 1 && here(of(marks, "video"))[0]?.index === 1 && picture > 1);
  await late.until("at its end", (seen) => seen.pictureEnd - seen.picture < LIVE && of(seen.marks, "video").length >= of(window.marks, "video").length);
  await late.page.locator("#timeline").focus();
  await late.page.keyboard.press("Home");
  await late.until("back at the start", (seen) => seen.pictureEnd - seen.picture > 3 * CHUNK);
  await late.page.keyboard.press("End");
  await late.until("live again", (seen) => seen.pictureEnd - seen.picture < LIVE);

  // A reload goes on; nothing is stored anywhere.
  await late.page.reload();
  await late.until("it plays after a reload", (seen) => seen.picture > 1 && here(seen.marks).length > 4 && seen.hash === "");
  const stored = await late.page.evaluate(async () => [document.cookie, localStorage.length, sessionStorage.length, (await indexedDB.databases()).length]);
  assert.deepEqual(stored, ["", 0, 0, 0]);

  await late.page.close();

  // The phone is taken. When the page says what is measured in the page: whoever looks may be slow.
  await person.page.evaluate(() => {
    const root = document.documentElement;
    window.said = {};
    new MutationObserver(() => (window.said[root.dataset.phone] ??= Date.now())).observe(root, { attributeFilter: ["data-phone"] });
  });
  await world.ask("kill the capture client");
  const killed = Date.now();
  await person.until("it counts", ({ heard, phone }) => phone === "quiet" && /^Last heard from the phone \d+\ss ago$/.test(heard));
  const silent = await person.until("silent", ({ phone }) => phone === "silent");
  const said = await person.page.evaluate(() => window.said);
  const [counted, silentAfter] = [said.quiet - killed, said.silent - killed];
  assert.ok(counted < 10_000 && silentAfter < 20_000, `counter after ${counted} ms, silent after ${silentAfter} ms`);
  assert.match(silent.heard, /^Last heard from the phone \d+\ss ago$/);
  await person.until("a screen reader hears it", ({ status }) => status.startsWith("The phone has gone silent"));
  await person.until("it counts on", ({ heard }) => heard !== silent.heard);
  await person.page.waitForFunction(() => window.locks === 0, null, { timeout: 60_000 });
  await person.shot(world.params, "silent");

  const saved = await save(person);
  world.quiet(grant.secret, second.secret);
  return { late_over: late.wire.sockets ? "websocket" : "webtransport", counted_ms: counted, silent_ms: silentAfter, apart_ms: Math.round(Math.abs(apart.sound - apart.picture) * 1000), behind, saved };
}

/** Runs in the page before its own scripts: how many locks keep the screen on. */
function countLocks() {
  window.locks = 0;
  const request = async () => {
    window.locks++;
    return Object.assign(new EventTarget(), { release: async () => void window.locks-- });
  };
  Object.defineProperty(navigator, "wakeLock", { value: { request } });
}

/** Saves, and reads the list of what was safe out of the archive (it is not compressed). */
async function save(person) {
  const [download] = await Promise.all([person.page.waitForEvent("download"), person.page.click("#save")]);
  const archive = readFileSync(await download.path());
  const text = archive.toString("latin1");
  const manifest = JSON.parse(text.slice(text.indexOf("{"), text.indexOf("\n}PK") + 2));
  const files = manifest.chunks.filter((chunk) => chunk.file);
  assert.ok(files.length > 4 && files.every((chunk) => text.includes(chunk.file)));
  assert.ok(manifest.chunks.some((chunk) => chunk.state === "confirmed" && chunk.confirmed_by === "receipt" && chunk.receipt));
  await person.until("it says so", ({ saved }) => saved.startsWith("Saved:"));
  return { files: files.length, chunks: manifest.chunks.length };
}

/** Nobody opened the link while it happened. Ten minutes later the window is still there. */
async function later(world) {
  const grant = await world.grant();
  await world.ask("record, kill the capture client, let ten minutes pass");
  const person = await world.person({ before: keepBuffers });
  await person.open(world.link(grant));
  const seen = await person.until("the window", ({ phone, marks, picture }) => phone === "silent" && picture > 1 && here(of(marks, "audio")).length >= 4 && here(of(marks, "video")).length >= 4);
  assert.match(seen.heard, /^Last heard from the phone 1\d\smin/);
  assert.ok(of(seen.marks, "audio").some(({ index }) => index === 1));
  const start = seen.picture;
  // Without a mouse.
  assert.deepEqual(await person.walk("forget"), ["timeline", "listen", "pause", "live", "audio-only", "save", "forget"]);
  await person.enter("listen");
  await person.until("it is heard", (now) => !now.quiet && now.sound > 1 && now.picture > start);
  await person.until("all of it is safe", ({ marks }) => every(here(marks), "confirmed"));
  await person.enter("audio-only");
  await person.until("sound only", ({ body }) => body.includes("Sound only: no picture is being sent"));
  await person.page.keyboard.press("Space");
  await person.until("with picture", ({ body }) => !body.includes("Sound only: no picture is being sent"));
  const [saved] = await Promise.all([person.page.waitForEvent("download"), person.enter("save")]);
  assert.match(saved.suggestedFilename(), /^recording-.*\.zip$/);
  await evicted(person);
  await person.shot(world.params, "later");

  // Closed at the core, it is still there: the core has it all.
  const { incident } = await world.session();
  await world.account("PUT", `/devcore/incidents/${incident}`, { state: "closed" });
  const afterwards = await world.person();
  await afterwards.open(world.link(grant));
  await afterwards.until("what the core has", (now) => now.phone === "closed" && now.picture > 1 && every(now.marks, "confirmed") && here(now.marks).length >= 8);
  world.quiet(grant.secret);
  return { heard: seen.heard };
}

/** Runs in the page before its own scripts: its buffers are at hand. */
function keepBuffers() {
  const add = MediaSource.prototype.addSourceBuffer;
  window.buffers = [];
  MediaSource.prototype.addSourceBuffer = function (type) {
    const buffer = add.call(this, type);
    window.buffers.push(buffer);
    return buffer;
  };
}

/** A browser short of memory empties the buffers by itself: the page notices, and gives it again what plays. */
async function evicted(person) {
  await person.page.locator("#timeline").focus();
  await person.page.keyboard.press("End");
  await person.page.waitForFunction(() => document.getElementById("picture").currentTime - window.buffers[0].buffered.start(0) > 7);
  const first = await person.page.evaluate(() => {
    const starts = window.buffers.map((buffer) => buffer.buffered.start(0));
    window.buffers.forEach((buffer, i) => buffer.remove(starts[i], starts[i] + 5));
    return Math.max(...starts);
  });
  await person.page.waitForFunction((first) => window.buffers.every(({ updating, buffered }) => !updating && buffered.start(0) > first + 3), first);
  await person.page.keyboard.press("Home");
  const plays = (first) => ["picture", "sound"].every((id) => {
    const { currentTime, readyState, paused } = document.getElementById(id);
    return !paused && readyState >= 3 && currentTime > first + 0.5 && currentTime < first + 4.5;
  });
  await person.page.waitForFunction(plays, first, { polling: 50, timeout: 60_000 });
}

const words = (screen) => (seen) => seen.screen === screen && !seen.marks.length;

/** The screens of their own, revoking and forgetting. */
async function screens(world) {
  const nothing = await world.person();
  const grant = await world.grant();
  await nothing.open(`${world.origin}/`);
  await nothing.until("no link", words("no_link"));
  await nothing.shot(world.params, "no-link");

  // The link opened in the same tab: the page begins anew with it.
  await nothing.open(world.link(grant));
  const waiting = await nothing.until("nothing yet", words("nothing_yet"));
  assert.ok(waiting.body.includes("This page calls nobody"), "it is said on the screens too");
  assert.ok(await nothing.page.isVisible("#forget"));
  await nothing.shot(world.params, "nothing-yet");
  await world.revoke(grant);
  await nothing.until("revoked while it is open", words("revoked"));
  await nothing.shot(world.params, "revoked");
  await nothing.page.reload();
  await nothing.until("revoked when it is opened", words("revoked"));

  // A worker that can't be had: tried a few times, then said.
  const other = await world.grant();
  const broken = await world.person();
  await broken.page.route("**/worker.js", (route) => route.abort());
  await broken.open(world.link(other));

  const away = await world.person();
  await away.open(world.link(other, { relay: "http://127.0.0.1:9" }));
  await away.until("the relay is away", words("relay_away"));
  await away.shot(world.params, "relay-away");
  await away.page.click("html");
  // A browser that lacks something nobody thought of: no empty page.
  const lacking = await world.person({ before: () => (window.setInterval = () => { throw new TypeError(); }) });
  await lacking.open(world.link(other));
  await lacking.until("it says that it can't", words("no_crypto"));
  await lacking.context.close();
  const without = await world.person();
  await without.open(world.link(other, { core: "http://127.0.0.1:9" }));
  await without.until("the core is away", words("core_away"));
  await without.shot(world.params, "core-away-before");

  await broken.until("without a worker nothing is shown", words("no_worker"));
  await broken.shot(world.params, "no-worker");
  await broken.page.unroute("**/worker.js");
  await broken.enter("reload");
  await broken.until("loaded again, with the same link", words("nothing_yet"));
  await broken.context.close();

  const person = await world.person();
  await person.open(world.link(other));
  await person.until("nothing yet", words("nothing_yet"));
  await world.ask("record a little");
  await person.until("it came", ({ marks }) => here(marks).length >= 2);
  const turned = await world.person({ context: { locale: "ar-XB" } });
  await turned.open(world.link(other));
  await turned.until("it came here too", ({ marks }) => here(marks).length >= 2);
  const [dir, lang] = await turned.page.evaluate(() => [document.documentElement.dir, document.documentElement.lang]);
  assert.deepEqual([dir, lang], ["rtl", "ar-XB"], "by the browser's language");
  await turned.page.keyboard.press("Tab");
  await turned.shot(world.params, "right-to-left");
  // A closed tab forgets: what has no link of its own has none, in the same browser.
  await turned.page.close();
  await turned.tab();
  await turned.open(`${world.origin}/`);
  await turned.until("a closed tab forgot the link", words("no_link"));
  await turned.context.close();
  await person.enter("forget");
  await person.until("forgotten", words("forgotten"));
  const left = await person.page.evaluate(() => JSON.stringify([history.state, location.href, document.body.innerText]));
  for (const secret of [other.secret, world.params.key]) assert.ok(!left.includes(secret));
  await person.page.reload();
  await person.until("it stays forgotten", words("forgotten"));

  // Taken back while something is shown: that stays, and nothing more is said of the phone.
  const taken = await world.grant();
  const shut = await world.person();
  await shut.open(world.link(taken));
  await shut.until("it is shown", ({ marks }) => here(marks).length >= 2);
  await world.revoke(taken);
  const after = await shut.until("not watching any more", ({ phone, trouble }) => phone === "stopped" && trouble === "revoked");
  assert.deepEqual([after.heard, after.screen, here(after.marks).length >= 2], ["", "", true]);
  await shut.shot(world.params, "revoked-while");

  await world.ask("let the grants run out");
  const last = await world.person();
  await last.open(world.link(other));
  await last.until("expired", words("expired"));
  await last.shot(world.params, "expired");
  world.quiet(grant.secret, other.secret, taken.secret);
  return {};
}

/** A browser without Media Source Extensions: sound by Web Audio, picture by blobs; and the way to the relay is cut and mended. */
async function plain(world) {
  const grant = await world.grant();
  const person = await world.person({ before: () => { delete window.MediaSource; delete window.ManagedMediaSource; } });
  // How far Web Audio got: what was handed to the loudspeaker.
  await person.context.addInitScript(() => {
    const start = AudioBufferSourceNode.prototype.start;
    AudioBufferSourceNode.prototype.start = function (...when) { window.heard = (window.heard ?? 0) + this.buffer.duration; return start.apply(this, when); };
  });
  const [way, relay] = await world.way();
  await person.open(world.link(grant, { relay }));
  await person.until("the picture moves", (seen) => seen.picture > 0.2 && here(seen.marks).length > 2);
  await person.page.click("#listen");
  const heard = () => person.page.evaluate(() => window.heard ?? 0);
  while ((await heard()) < 3 * CHUNK) await person.page.waitForTimeout(200);
  await person.until("it is safe", ({ marks }) => here(marks).filter((mark) => mark.state === "confirmed").length > 2);

  way.break();
  await person.until("it says that the relay is away", ({ trouble }) => trouble === "relay_away");
  await person.shot(world.params, "relay-away-while");
  way.mend();
  const missed = await person.until("it says what was missed", ({ notice, trouble }) => trouble === "" && notice.startsWith("Connected again"));
  const last = of(missed.marks, "audio").at(-1).index;
  await person.until("it goes on", ({ marks }) => here(of(marks, "audio")).at(-1).index > last);
  world.quiet(grant.secret);
  return { notice: missed.notice };
}

/** Runs in the page before its own scripts: what the phone records from in eight seconds on says that it was ten minutes earlier. */
function setBack() {
  const [parse, from] = [Date.parse, Date.now() + 8000];
  Date.parse = (text) => (parse(text) > from ? parse(text) - 600_000 : parse(text));
}

/** The same over WebTransport: a stream for each chunk, and no WebSocket. */
async function webtransport(world) {
  const grant = await world.grant();
  const person = await world.person();
  await person.open(world.link(grant, { wt: world.params.wt }));
  await person.until("the picture moves", (seen) => seen.phone === "live" && seen.picture > 1);
  await person.page.click("#listen");
  await person.until("the sound moves", (seen) => !seen.quiet && seen.sound > 1);
  await person.until("it is safe", ({ marks }) => marks.filter((mark) => mark.here === "true" && mark.state === "confirmed").length >= 6);

  // A phone whose clock is set back while it records: playing goes on at the edge, and it is said.
  const clock = await world.person({ before: setBack });
  await clock.open(world.link(await world.grant(), { wt: world.params.wt }));
  await clock.until("it plays before", (seen) => seen.phone === "live" && seen.picture > 1);
  const step = await clock.until("the clock is set back", ({ body }) => body.includes("The phone's clock was set back while it recorded."));
  const stepAt = of(step.marks, "audio").at(-1).index;
  const edge = (seen) => seen.picture > step.picture + 3 * CHUNK && seen.pictureEnd - seen.picture < LIVE;
  await clock.until("it goes on at the edge", (seen) => edge(seen) && here(of(seen.marks, "audio")).at(-1).index > stepAt + 2);
  await clock.context.close();

  await person.page.click("label.switch");
  await person.until("sound only", ({ body }) => body.includes("Sound only: no picture is being sent"));
  const { marks } = await person.look();
  const soundAt = of(marks, "audio").at(-1).index;
  const after = await person.until("more sound", (seen) => here(of(seen.marks, "audio")).at(-1).index > soundAt + 3);
  // What was on its way when it was asked for may still come.
  assert.ok(here(of(after.marks, "video")).at(-1).index <= soundAt + 1, "pictures were sent");
  await person.page.click("label.switch");
  await person.until("the picture comes again", (seen) => here(of(seen.marks, "video")).at(-1).index > soundAt + 3);

  const other = await world.person();
  const second = await world.grant();
  await other.open(world.link(second, { wt: world.params.wt }));
  await other.until("the other one watches", (seen) => seen.phone === "live" && here(seen.marks).length > 2);
  await world.revoke(grant);
  await person.until("revoked", ({ trouble }) => trouble === "revoked");
  assert.equal(person.wire.sockets, 0, "a WebSocket was opened");

  // The archive closes the incident: who watches is told so, and keeps what is there.
  const { incident } = await world.session();
  await world.account("PUT", `/devcore/incidents/${incident}`, { state: "closed" });
  const closed = await other.until("closed", (seen) => seen.phone === "closed");
  assert.deepEqual([closed.heard, closed.screen, here(closed.marks).length > 2], ["", "", true]);
  await other.until("a screen reader hears it", ({ status }) => status.startsWith("The archive has closed this incident"));
  await other.shot(world.params, "closed-while");
  world.quiet(grant.secret, second.secret);
  return {};
}

/** The link that `./demo --page` prints, opened by whoever started it. */
async function demo(world) {
  // An old device: its worker takes a third of a second. Else a piece may come and be safe between two looks of the page, always.
  const slow = () => {
    const post = Worker.prototype.postMessage;
    Worker.prototype.postMessage = function (...all) { setTimeout(() => post.apply(this, all), 300); };
  };
  const person = await world.person({ before: slow });
  await person.open(world.params.link);
  const first = await person.until("live", (seen) => seen.phone === "live" && seen.picture > 1 && here(seen.marks).length > 0);
  assert.equal(first.hash, "");
  await person.page.evaluate(() => {
    const states = (window.states = {});
    const note = ({ target }) => target.dataset.index && (states[`${target.dataset.lane}${target.dataset.index}`] ??= []).push(target.dataset.state);
    new MutationObserver((changes) => changes.forEach(note)).observe(document.getElementById("timeline"), { subtree: true, attributeFilter: ["data-state"] });
  });
  await person.page.click("#listen");
  const heard = await person.until("it is heard", (seen) => !seen.quiet && seen.sound > 1);
  await person.until("it goes on", (seen) => seen.sound > heard.sound + 2 * CHUNK && seen.picture > heard.picture + 2 * CHUNK);
  await person.page.waitForFunction(() => Object.values(window.states).some((list) => list[0] !== "confirmed" && list.at(-1) === "confirmed"), null, { timeout: 60_000 });
  await person.until("it says so", ({ safe }) => safe.startsWith("Safe up to"));
  world.quiet();
  return {};
}

export const scenarios = { live, later, screens, plain, webtransport, demo };
