// A contact on a bad link: how soon the page says something, says how the phone is, and is heard. All from the tap on the link.

import assert from "node:assert/strict";

/** What is wanted on a link of 750 kbit/s, 300 ms and 2 % of loss: a first word on the phone or on what it recorded, and sound. */
const FIRST_STATUS_MS = 3000;
const FIRST_SOUND_MS = 8000;
/** What fails the test is so many times as late: a machine may be busy. How late it was stands in what is printed. */
const MARGIN = 2;
const TRIES = 3;
/** Where nobody answers, as behind a network that lets no UDP through. */
const NOWHERE = "https://10.99.0.9:443";

/** Runs in the page before its own scripts: the page's clock begins with the tap on the link. */
function watch() {
  const firsts = (window.firsts = {});
  const first = (what, is) => is && (firsts[what] ??= Math.round(performance.now()));
  let heardAt = null;
  setInterval(() => {
    const title = [...document.querySelectorAll("h1")].find((one) => one.getClientRects().length);
    const sound = document.getElementById("sound");
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    if (paint) firsts.painted ??= Math.round(paint.startTime);
    first("words", paint && title?.textContent);
    // "Connecting" says nothing of the phone or of what it recorded; "Catching up" says that the relay has something of it.
    const { phone, screen } = document.documentElement.dataset;
    first("status", paint && title && screen === "");
    first("nothing", screen === "nothing_yet");
    first("phone", firsts.status && phone === "live");
    const heard = sound && !sound.paused && !sound.muted && !sound.seeking ? sound.currentTime : null;
    first("sound", heard !== null && heardAt !== null && heard > heardAt);
    heardAt = heard;
  }, 25);
  const Transport = window.WebTransport;
  const note = (way, what) => (firsts[`${way}_${what}`] ??= Math.round(performance.now()));
  if (Transport) {
    window.WebTransport = class extends Transport {
      constructor(...args) {
        super(...args);
        note("webtransport", "begun");
        this.ready.then(() => note("webtransport", "open"), (error) => (firsts.webtransport_failed ??= `${Math.round(performance.now())} ${error}`));
      }
    };
  }
  window.WebSocket = class extends WebSocket {
    constructor(...args) {
      super(...args);
      note("websocket", "begun");
      this.addEventListener("open", () => note("websocket", "open"));
    }
  };
  addEventListener("click", () => first("tapped", true), { capture: true });
}

function changed(link, members) {
  const [page, text] = link.split("#w1.");
  const all = { ...JSON.parse(Buffer.from(text, "base64url")), ...members };
  return `${page}#w1.${Buffer.from(JSON.stringify(all)).toString("base64url")}`;
}

async function once(world, way, link) {
  const person = await world.person({ before: watch });
  if (way === "websocket") await person.context.addInitScript(() => delete window.WebTransport);
  await person.open(link);
  await person.until(`${way}: something to hear`, ({ screen }) => screen === "");
  await person.page.click("#listen");
  await person.page.waitForFunction(() => window.firsts.sound && window.firsts.phone);
  const firsts = await person.page.evaluate(() => window.firsts);
  // A socket that lost the race is opened and closed, and carries nothing.
  const { audio_priority, live_preview } = person.wire.bytes;
  firsts.carried = audio_priority + live_preview > 0 ? "websocket" : "webtransport";
  await person.context.close();
  return firsts;
}

export async function thin(world) {
  const { link } = world.params;
  const ways = { webtransport: link, websocket: link, without_udp: changed(link, { wt: { url: NOWHERE } }) };
  const result = {};
  for (const [way, there] of Object.entries(ways)) {
    const carrier = way === "webtransport" ? way : "websocket";
    const tries = (result[way] = []);
    // An unlucky packet may make the socket the faster one, and a link or a machine lose a second or two: one of three counts.
    const fine = ({ status, sound, nothing, carried }) =>
      status <= MARGIN * FIRST_STATUS_MS && sound <= MARGIN * FIRST_SOUND_MS && nothing === undefined && carried === carrier;
    do tries.push(await once(world, way, there));
    while (tries.length < TRIES && !fine(tries.at(-1)));
    assert.ok(fine(tries.at(-1)), `${way}: ${JSON.stringify(result)}`);
  }
  return result;
}
