// Every word the page shows. To translate it: one more object like `en`, and its name in `languages`.

import type { Mark } from "../rules/ledger";
import type { Odd } from "../rules/order";
import type { Phone, Screen } from "../rules/status";

const en = {
  dir: "ltr" as "ltr" | "rtl",
  title: "Watching",
  /** Stands in `index.html`, into which the build puts it with the title. */
  noScript: "This page needs JavaScript: it decrypts the recording here, on your device.",
  phone: {
    unknown: "Catching up…",
    idle: "Nothing new at the moment",
    live: "Live now",
    quiet: "The phone is quiet",
    silent: "The phone has gone silent",
    ended: "The recording has ended",
    cut: "No connection",
    checking: "No news: checking the connection",
    closed: "The archive has closed this incident",
    stopped: "Not watching any more",
  } satisfies Record<Phone, string>,
  heard: (ago: string) => `Last heard from the phone ${ago} ago`,
  heardNow: "The phone is sending",
  because: {
    unknown: "What came before is loading.",
    idle: "The relay has not said that the phone is silent. What came before is below.",
    live: "",
    quiet: "That can be a bad signal. This page goes on listening.",
    silent: "It may have no signal or no battery, or it was switched off. What came before is below.",
    ended: "The phone itself said so. Pieces that were still waiting may come in.",
    cut: "",
    checking: "Whether the phone still sends is not known at the moment.",
    closed: "Nothing more comes here. Below is what the archive has.",
    stopped: "This page no longer hears how the phone is.",
  } satisfies Record<Phone, string>,
  trouble: {
    relay_away: "No connection to the relay. Trying again by itself; what comes meanwhile is caught up.",
    core_away: "The archive does not answer. New pieces still show here, but none can be called safe until it is back.",
    expired: "Your link has run out. You see what came before.",
    revoked: "Your link was withdrawn. You see what came before.",
  },
  screens: {
    no_link: ["This link is not complete", "Open the whole link that was sent to you. Its last part, behind the # sign, is the key: without it nothing can be shown."],
    no_crypto: ["This browser can't open the recording", "Try a current version of Safari, Chrome, Edge or Firefox, and the link as it was sent."],
    no_worker: ["A part of this page did not load", "Without it nothing can be decrypted. Load the page again; it goes on with the same link."],
    connecting: ["Connecting…", "This takes a few seconds on a slow network."],
    nothing_yet: ["Connected. Nothing has come yet", "As soon as the phone sends something, it appears here."],
    expired: ["This link has run out", "Ask the person who sent it for a new one."],
    revoked: ["This link was withdrawn", "The person who sent it, or the archive, has taken it back, or it is not a link any more that the archive knows."],
    core_away: ["The archive does not answer", "It has to let you in first. This page tries again by itself."],
    relay_away: ["The relay does not answer", "Recordings come through it. This page tries again by itself; what comes meanwhile is caught up."],
    over_empty: ["The recording has ended", "There is nothing of it to show here."],
    closed_empty: ["The archive has closed this incident", "There is nothing of it to show here."],
    forgotten: ["Forgotten", "This tab no longer knows the link, and keeps nothing of what it showed. To watch again, open the link again."],
  } satisfies Record<Screen, [string, string]>,
  marks: {
    receiving: "Coming in",
    unconfirmed: "Seen here, not yet safe",
    confirmed: "Safe",
    rejected: "Refused",
    missing: "Not here",
  } satisfies Record<Mark, string>,
  marksMean: {
    receiving: "its bytes are arriving",
    unconfirmed: "this page has it, the archive has not said so yet",
    confirmed: "stored in the archive",
    rejected: "the archive refused it, or it is not what was recorded",
    missing: "left out or lost on the way; tap it to ask for it",
  } satisfies Record<Mark, string>,
  onlySafe: "Safe, not loaded here",
  lanes: { video: "Picture", audio: "Sound" },
  laneOff: "switched off",
  safeUpTo: (time: string) => `Safe up to ${time}`,
  safeBut: (time: string, missing: string) => `Safe up to ${time}, without ${missing}`,
  nothingSafe: "Nothing is safe yet",
  unsafe: (length: string) => `${length} seen here, not yet safe`,
  refused: (length: string) => `${length} seen here were refused: they are not safe`,
  allSafe: "Everything seen here is safe",
  safeMeans: "Safe means: stored in the archive.",
  safeMeansSigned: "Safe means: stored in the archive, which signed for it.",
  listen: "Listen",
  listenAgain: "Tap to hear again",
  mute: "Mute",
  unmute: "Unmute",
  pause: "Pause",
  play: "Play",
  toLive: "Go live",
  isLive: "Live",
  fromStart: "From the start",
  audioOnly: "Sound only",
  audioOnlyHint: "saves data",
  noPicture: "No picture for this moment",
  soundOnlyOn: "Sound only: no picture is being sent",
  cantPlay: "This browser can't play this recording. How safe it is still shows below.",
  cantHear: "This browser can't play the sound of this recording.",
  oddClock: {
    back: "The phone's clock was set back while it recorded. Times after that go on from the ones before it.",
    ahead: "The phone's clock is far ahead. Times here are by when it came, not by that clock.",
  } satisfies Record<Odd, string>,
  reload: "Load again",
  timeline: "Timeline",
  timelineHint: "Arrow keys go piece by piece, Home to the start, End to now.",
  position: (time: string, state: string) => `${time}, ${state}`,
  nobodyCalled: "This page calls nobody. No police, ambulance or other help has been told. If somebody is in danger, call the emergency number yourself.",
  jumpedGap: (length: string) => `${length} are missing here and were skipped.`,
  jumpedLive: (length: string) => `Skipped ${length} to be live again.`,
  soon: "You hear what was recorded a little earlier. The rest is still loading.",
  nowLive: "All of it is here. From now on this is live.",
  missedAll: (length: string) => `Connected again. ${length} that came meanwhile are caught up.`,
  missedSome: (length: string, missing: string) => `Connected again. ${length} are caught up, ${missing} are missing.`,
  missedNothing: "Connected again. Nothing was missed.",
  catchingUp: "Connected again. Catching up…",
  save: "Save what was received",
  saving: "Saving…",
  saved: (count: number, without: number) =>
    `Saved: ${count} pieces and a list of what was safe.${without ? ` ${without} that were seen here were freed meanwhile and are only in the list.` : ""}`,
  notSaved: "Saving did not work. Try again.",
  saveNote: "The file is not encrypted. Keep it where only you can read it.",
  forget: "Forget this",
  forgetHint: "This tab forgets the link and everything it showed.",
  // A number and its unit stay on one line.
  seconds: (n: number) => `${n}\u00a0s`,
  minutes: (m: number, s: number) => (s ? `${m}\u00a0min ${s}\u00a0s` : `${m}\u00a0min`),
  hours: (h: number, m: number) => (m ? `${h}\u00a0h ${m}\u00a0min` : `${h}\u00a0h`),
  readme: [
    "What a contact's page received of a recording, opened.",
    "",
    "sound/ and picture/ hold one file for each piece, named by its place and the time the phone says it was recorded (UTC).",
    "manifest.json lists every piece the page knew of: how it stood when this was saved, the SHA-256 of the sealed piece as it",
    "is stored in the archive, and the archive's signed receipt where there was one. A piece without \"state\": \"confirmed\" was",
    "not known to be safe. \"not_in_file\" says why a piece is in the list only. \"times\" says whose word the times are: the",
    "archive's (\"core\"), the relay's (\"relay, not proven\"), or a guess from the pieces beside it (\"guessed\").",
    "Where the phone's clock could not be right, \"shown_later_by_ms\" says where the page put the piece instead.",
  ].join("\n"),
};

export type Text = typeof en;

/** `ar-XB` is the tag of a made-up language to try what goes from right to left: this one has English words. */
const languages: Record<string, Text> = { en, "ar-XB": { ...en, dir: "rtl" } };

/** What is said where no script runs to choose a language: each one's words, once. */
export const noScripts = (): string[] => [...new Set(Object.values(languages).map(({ noScript }) => noScript))];

/** The words of the first language that there are words for. */
export function pick(wanted: readonly string[]): { lang: string; text: Text } {
  for (const tag of wanted) {
    for (const lang of [tag, tag.split("-")[0] as string]) {
      const text = languages[lang];
      if (text) return { lang, text };
    }
  }
  return { lang: "en", text: en };
}

/** How long something is, in whole units. */
export function length(text: Text, ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return text.seconds(seconds);
  if (seconds < 3600) return text.minutes(Math.floor(seconds / 60), seconds % 60);
  return text.hours(Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60));
}

const formats = new Map<string, Intl.DateTimeFormat>();
/** Times that a date can hold. */
const MAX_TIME = 8.64e15;

/** A time of day where the page is, with the day if that is another than now's. Formats are dear to make: they are kept. */
export function clock(lang: string, at: number, now = Date.now()): string {
  if (!(Math.abs(at) <= MAX_TIME)) return "";
  const today = new Date(at).toDateString() === new Date(now).toDateString();
  const key = `${lang} ${today}`;
  let format = formats.get(key);
  if (!format) {
    const day = today ? {} : { year: "numeric", month: "short", day: "numeric" } as const;
    format = new Intl.DateTimeFormat(lang, { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
    formats.set(key, format);
  }
  return format.format(at);
}
