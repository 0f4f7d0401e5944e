// The page: joins session, player and view.

import { begun, opened } from "./first";
import type { Begun } from "./io/begin";
import { Player } from "./io/player";
import { keep, kept, replaced } from "./io/place";
import { Session } from "./io/session";
import { Wake } from "./io/wake";
import type { Lane } from "./rules/assembly";
import { type Chunk, keyOf, type Mark, markOf } from "./rules/ledger";
import { type Link, readKey } from "./rules/link";
import { Pauses } from "./rules/pauses";
import { type Facts, heardAgo, type Phone, phoneOf, screenOf, troubleOf } from "./rules/status";
import { type Summary, summary } from "./rules/summary";
import { download, save } from "./save";
import { length, pick, type Text } from "./ui/text";
import { Timeline } from "./ui/timeline";
import { aside, type Shown, View } from "./ui/view";

/** What is still coming of the window is waited for so long before the first picture moves. */
const GATHER_MS = 1200;
const GATHER_MOST_MS = 6000;
/** Whoever wants to hear waits at most so long; until the window is here, what is here plays. */
const HEARD_MS = 1000;
/** Safety is read out at most so often. */
const SPEAK_MS = 45_000;
/** What is ahead of the playhead when it does not follow the recording. */
const AHEAD_MS = 12_000;
/** What is not on the player's line is given to it again after this time, then after twice as long. */
const REFILL_MS = 5000;

/** What is not here where somebody goes to is waited for so long. */
const PATIENCE_MS = 4000;

class Page {
  private readonly view: View;
  private readonly timeline: Timeline;
  private readonly player: Player;
  private readonly session: Session;
  private readonly wake = new Wake();
  private started = false;
  /** It plays what is here of the window until the rest came, and goes live then. */
  private ahead = false;
  private firstAt: number | null = null;
  private lastAt = 0;
  private said: Phone | "" = "";
  private saidTrouble: string | null = null;
  private saidOdd: string | null = null;
  private spokenAt = 0;
  private spoken = "";
  private counted: { version: number; summary: Summary } | null = null;
  private readonly refills = new Pauses(REFILL_MS);
  /** Of what was shown, the last one recorded. */
  private readonly newest: Partial<Record<Lane, Chunk>> = {};

  constructor(link: Link, begun: Begun, audioOnly: boolean, private readonly text: Text, lang: string) {
    this.session = new Session(link, audioOnly, {
      key: () => readKey(kept().fragment ?? ""),
      show: (chunk, bytes) => this.show(chunk, bytes),
      missed: ({ caughtUpMs, missingMs }) => {
        const [came, lost] = [length(text, caughtUpMs), length(text, missingMs)];
        this.view.note(missingMs > 500 ? text.missedSome(came, lost) : caughtUpMs > 500 ? text.missedAll(came) : text.missedNothing, performance.now());
      },
      catchingUp: () => this.view.note(text.catchingUp, performance.now()),
    }, begun);
    this.timeline = new Timeline(text, lang, this.session.ledger, {
      seek: (at) => this.seek(at),
      live: () => this.goLive(),
      fetch: (chunk) => this.session.want(chunk.started, chunk.ended, true),
    });
    this.view = new View(text, lang, this.timeline);
    this.view.enter();
    this.player = new Player(this.view.audio, this.view.video, {
      jumped: (over, why) => {
        // While the window is still loading every piece moves the edge.
        const settled = why === "gap" || this.session.intake.caughtUp;
        if (settled) this.view.note((why === "gap" ? text.jumpedGap : text.jumpedLive)(length(text, over)), performance.now());
      },
      silenced: () => this.view.note(text.listenAgain, performance.now()),
      ticked: () => this.tick(performance.now()),
    });
    this.player.audioOnly = audioOnly;
    this.listen();
    void this.session.run();
  }

  private show(chunk: Chunk, bytes: Uint8Array<ArrayBuffer>): void {
    this.firstAt ??= performance.now();
    this.lastAt = performance.now();
    const before = this.newest[chunk.lane];
    // By order: a recorder's clock may be set back.
    const newest = !before || this.session.ledger.later(chunk, before);
    if (newest) this.newest[chunk.lane] = chunk;
    this.play(chunk, bytes, newest);
  }

  private play(chunk: Chunk, bytes: Uint8Array<ArrayBuffer>, newest = this.newest[chunk.lane] === chunk): void {
    const { started, ended } = chunk;
    this.player.add(chunk.lane, { key: keyOf(chunk.stream, chunk.index), started, ended, newest, bytes });
  }

  private tick(now: number): void {
    const { facts } = this.session;
    const phone = phoneOf(facts);
    this.player.growing = !facts.capture && !facts.stopped && !facts.closed;
    if (this.ahead) this.overtake(now);
    if (this.player.at === null) this.begin(now);
    else if (!this.player.live) this.refill(this.player.at);
    this.wake.tick(this.player.plays, now);
    this.view.draw(this.shown(facts, phone, now), now);
    this.speak(phone, now);
  }

  /** The playhead begins when the window is here: at the recording's edge, or at its start if nothing more comes. */
  private begin(now: number): void {
    const first = this.session.ledger.all()[0];
    // Nothing comes by itself any more: the start is fetched.
    if (this.firstAt === null && first && !this.player.growing) this.session.want(first.started, first.started + AHEAD_MS);
    if (this.firstAt === null || !this.player.lines().some((line) => line.spans.length)) return;
    const gathered = this.session.intake.caughtUp || now - this.lastAt > GATHER_MS || now - this.firstAt > GATHER_MOST_MS;
    if (gathered) return this.player.begin(this.player.growing);
    if (!this.player.growing || !this.player.heard || now - this.firstAt < HEARD_MS || !this.player.outputs.audio.line.spans.length) return;
    this.player.begin(true);
    this.player.live = false;
    this.ahead = true;
    this.view.note(this.text.soon, now);
  }

  /** The window came while a part of it played. */
  private overtake(now: number): void {
    if (!this.session.intake.soundCaughtUp && now - this.lastAt <= GATHER_MS) return;
    this.ahead = false;
    if (!this.player.growing) return;
    this.goLive();
    this.view.note(this.text.nowLive, now);
  }

  /** Away from the edge, what lies ahead is fetched, or given to the player again where it was freed. */
  private refill(at: number): void {
    this.session.want(at - 500, at + AHEAD_MS);
    for (const chunk of this.session.ledger.all()) {
      if (!chunk.here || chunk.ended <= at || chunk.started > at + AHEAD_MS) continue;
      const key = keyOf(chunk.stream, chunk.index);
      if (this.player.outputs[chunk.lane].line.at((chunk.started + chunk.ended) / 2)) {
        this.refills.clear(key);
        continue;
      }
      const bytes = this.session.intake.shelf.get(chunk.stream, chunk.index);
      if (bytes && this.refills.due(key, performance.now())) this.play(chunk, bytes.slice());
    }
  }

  /** Counted once for each change. */
  private summary(): Summary {
    const { ledger } = this.session;
    if (this.counted?.version !== ledger.version) this.counted = { version: ledger.version, summary: summary(ledger.all(), ledger.lostUnsafe) };
    return this.counted.summary;
  }

  private shown(facts: Facts, phone: Phone, now: number): Shown {
    const { player, session } = this;
    return {
      phone, heardAgo: heardAgo(facts, now), trouble: troubleOf(facts), screen: screenOf(facts), summary: this.summary(),
      signed: session.intake.signsReceipts, playing: this.playing(), at: player.at, live: player.live, canBeLive: player.growing,
      paused: player.paused, heard: player.heard, started: this.started, audioOnly: player.audioOnly, pictured: player.pictured,
      waiting: player.waiting, playable: player.playable[player.audioOnly ? "audio" : "video"], hints: this.hints(),
    };
  }

  /** What stays true for a while, and is to be known. */
  private hints(): string[] {
    const { player, text } = this;
    const { odd } = this.session.ledger;
    return [...(odd ? [text.oddClock[odd]] : []), ...(player.audioOnly || player.playable.audio ? [] : [text.cantHear])];
  }

  /** The least safe of what plays now. */
  private playing(): Mark | null {
    const at = this.player.at;
    if (at === null) return null;
    const here = this.session.ledger.all().filter((chunk) => chunk.here && chunk.started <= at + 60 && at < chunk.ended + 60);
    const marks = here.map(markOf);
    return (["rejected", "unconfirmed", "confirmed"] as const).find((mark) => marks.includes(mark)) ?? null;
  }

  /** Changes are said once; how safe it is now and then. */
  private speak(phone: Phone, now: number): void {
    const { text } = this;
    const { odd } = this.session.ledger;
    if (odd !== this.saidOdd) {
      this.saidOdd = odd;
      if (odd) return this.view.announce(text.oddClock[odd]);
    }
    const trouble = troubleOf(this.session.facts);
    const screen = screenOf(this.session.facts);
    if (screen) {
      const words = [...text.screens[screen], aside(text, screen, phone, null)].filter(Boolean).join(". ");
      if (this.spoken !== words) this.view.announce(words);
      this.spoken = words;
    } else if (trouble !== this.saidTrouble) {
      this.saidTrouble = trouble;
      if (trouble) this.view.announce(text.trouble[trouble]);
    } else if (phone !== this.said) {
      this.said = phone;
      const ago = heardAgo(this.session.facts, now);
      this.view.announce([text.phone[phone], ago !== null && ago >= 5 ? text.heard(length(text, ago * 1000)) : "", text.because[phone]].filter(Boolean).join(". "));
      this.spokenAt = now;
    } else if (now - this.spokenAt > SPEAK_MS) {
      this.spokenAt = now;
      const words = document.getElementById("safe")?.textContent ?? "";
      if (words !== this.spoken) this.view.announce(words);
      this.spoken = words;
    }
  }

  private seek(at: number): void {
    this.ahead = false;
    this.session.want(at - 500, at + AHEAD_MS);
    this.player.paused = false;
    const there = this.session.ledger.all().some((chunk) => chunk.started <= at && at < chunk.ended && (chunk.here || (chunk.gone && !chunk.refused && !chunk.spoiled)));
    this.player.seek(at, there ? PATIENCE_MS : 0);
  }

  private goLive(): void {
    this.ahead = false;
    this.player.paused = false;
    this.player.begin(true);
  }

  private listen(): void {
    const { view, player, session } = this;
    view.listen.onclick = () => {
      if (player.heard) {
        player.heard = false;
        view.audio.muted = true;
        return;
      }
      this.started = true;
      void player.listen();
      this.wake.again();
    };
    view.pause.onclick = () => (player.paused = !player.paused);
    view.live.onclick = () => (player.growing ? this.goLive() : this.seek(session.ledger.all()[0]?.started ?? 0));
    view.audioOnly.onchange = () => {
      player.audioOnly = view.audioOnly.checked;
      session.setAudioOnly(player.audioOnly);
      keep({ ...kept(), audioOnly: player.audioOnly });
    };
    // A switch answers Enter too; a checkbox of a browser does not.
    view.audioOnly.addEventListener("keydown", ({ key }) => {
      if (key === "Enter") view.audioOnly.click();
    });
    view.save.onclick = () => void this.save();
    view.forget.onclick = () => {
      session.end();
      keep({ forgotten: true });
      location.reload();
    };
    view.reload.onclick = () => location.reload();
    addEventListener("offline", () => session.offline());
    addEventListener("online", () => session.poke());
    addEventListener("pageshow", () => session.poke());
    document.addEventListener("visibilitychange", () => {
      this.wake.again();
      this.wake.tick(player.plays, performance.now());
      if (document.visibilityState === "visible") session.poke();
    });
  }

  private async save(): Promise<void> {
    const { view, text, session } = this;
    view.save.disabled = true;
    view.tellSaved(text.saving);
    let words = text.notSaved;
    try {
      const saved = await save(session.ledger, session.intake.shelf, session.intake.incident, text.readme, new Date());
      download(saved);
      words = text.saved(saved.pieces, saved.without);
    } catch {
      // Too much for this device's memory, for one.
    } finally {
      view.tellSaved(words);
      view.announce(words);
      view.save.disabled = false;
    }
  }
}

function begin(): void {
  const { audioOnly, forgotten } = kept();
  // Another link opened in this tab is another page.
  addEventListener("hashchange", () => void replaced());
  const { lang, text } = pick(navigator.languages ?? [navigator.language]);
  if (opened && begun) {
    try {
      new Page(opened, begun, audioOnly === true, text, lang);
      return;
    } catch {
      // Something that this browser does not have: better said than a page that stays empty.
      begun.reach.connection.close();
      document.body.textContent = "";
    }
  }
  const view = new View(text, lang, new Timeline(text, lang, { version: 0 } as never, {} as never));
  view.enter();
  view.forget.onclick = () => {
    keep({ forgotten: true });
    location.reload();
  };
  const screen = forgotten ? "forgotten" : opened ? "no_crypto" : "no_link";
  view.draw({ screen, phone: "unknown" } as Shown, 0);
  view.announce(text.screens[screen].join(". "));
}

begin();
