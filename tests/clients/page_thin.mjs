// A contact on a bad link: how soon the page says something, says how the phone is, and is heard. All from the tap on the link.

import assert from "node:assert/strict";

/** What the product promises for a link of 750 kbit/s, 300 ms and 2 % of loss: how the phone is, and sound. */
const FIRST_STATUS_MS = 3000;
const FIRST_SOUND_MS = 8000;
/** What a busy machine is given: whether the promise is kept stands in what is printed. */
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
    // "Connecting" is a word, and says nothing of the phone.
    const { phone, screen } = document.documentElement.dataset;
    first("status", paint && title && screen === "" && ["live", "quiet", "silent", "ended", "closed", "idle"].includes(phone));
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
  await person.page.waitForFunction(() => window.firsts.sound);
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
    const good = ({ status, sound, carried }) => status <= FIRST_STATUS_MS && sound <= FIRST_SOUND_MS && carried === carrier;
    const tries = (result[way] = []);
    // What a machine or an unlucky link adds is not the page's: the best of three counts.
    do tries.push(await once(world, way, there));
    while (tries.length < TRIES && !good(tries.at(-1)));
    // An unlucky packet may make the socket the faster one, once.
    const best = tries.filter(({ carried }) => carried === carrier).sort((a, b) => a.sound - b.sound)[0];
    assert.ok(best, `never over ${carrier}: ${JSON.stringify(result)}`);
    assert.ok(best.status <= MARGIN * FIRST_STATUS_MS && best.sound <= MARGIN * FIRST_SOUND_MS, `${way}: ${JSON.stringify(result)}`);
  }
  return result;
}
