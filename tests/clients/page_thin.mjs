// A contact on a bad link: how soon the page says something, knows how the phone is, and is heard. All from the tap on the link.

import assert from "node:assert/strict";

/** What the product promises for a link of 750 kbit/s, 300 ms and 2 % of loss. */
const FIRST_STATUS_MS = 3000;
const FIRST_SOUND_MS = 8000;
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
    first("status", paint && title?.textContent);
    first("phone", title && document.documentElement.dataset.phone === "live");
    const heard = sound && !sound.paused && !sound.muted && !sound.seeking ? sound.currentTime : null;
    first("sound", heard !== null && heardAt !== null && heard > heardAt);
    heardAt = heard;
  }, 25);
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
  firsts.sockets = person.wire.sockets;
  await person.context.close();
  return firsts;
}

export async function thin(world) {
  const { link } = world.params;
  const ways = { webtransport: link, websocket: link, without_udp: changed(link, { wt: { url: NOWHERE } }) };
  const result = {};
  for (const [way, there] of Object.entries(ways)) {
    const kept = ({ status, sound }) => status <= FIRST_STATUS_MS && sound <= FIRST_SOUND_MS;
    const tries = (result[way] = []);
    // What a machine or an unlucky link adds is not the page's: the best of three counts.
    do tries.push(await once(world, way, there));
    while (tries.length < TRIES && !kept(tries.at(-1)));
  }
  for (const [way, tries] of Object.entries(result)) {
    const kept = tries.at(-1);
    assert.ok(kept.status <= FIRST_STATUS_MS, `${way}: first status after ${kept.status} ms; ${JSON.stringify(result)}`);
    assert.ok(kept.sound <= FIRST_SOUND_MS, `${way}: first sound after ${kept.sound} ms; ${JSON.stringify(result)}`);
  }
  return result;
}
