// A contact's session: a capability from the core, a connection to the relay, both renewed as long as they are needed.

import { Assembly, type Lane } from "../rules/assembly";
import { control, type Frame, kind } from "../rules/frames";
import { LIST_PAUSE_MS, listPause, settled } from "../rules/cadence";
import { afterEnding, Ladder } from "../rules/ladder";
import { type Chunk, Ledger, markOf } from "../rules/ledger";
import type { Link } from "../rules/link";
import { cutOff, missed, type Missed } from "../rules/missed";
import { Sleep } from "../rules/sleep";
import { doubt, type Facts, IDLE_MS } from "../rules/status";
import { begin } from "./begin";
import { type Capability, type Core, CoreRefusal } from "./core";
import { Intake, type Shown } from "./intake";
import { type Connection, type Listener, Reach, type Ways } from "./transport";
import { Vault } from "./vault";

const VARIANTS: Record<Lane, string> = { audio: "audio_priority", video: "live_preview" };
/** A connection that does not begin to answer for so long is given up. */
const GREETING_MS = 10_000;
/** After the page comes back it trusts a connection that spoke within this time. */
const TRUSTED_MS = 6_000;
const AWAY_PAUSE_MS = 4_000;
/** How long after a new connection it is told what was missed. */
const SETTLE_MS = 2_500;
/** The window is here when no more bytes came for so long. */
const END_OF_REPLAY_MS = 4_000;
/** A connection that is made again within this time is no news. */
const SPOKEN_OF_MS = 1_500;
/** Most chunks that are asked for again after a cut; a relay holds as many requests of a contact. */
const MOST_MENDED = 16;

export interface Hooks extends Shown {
  /** The group key, to be given away. */
  key(): Uint8Array<ArrayBuffer> | null;
  /** After a pause: what came meanwhile. */
  missed(missed: Missed): void;
  /** The connection is back, and what came meanwhile is still coming. */
  catchingUp(): void;
}

type Ended = { after: "again" | "renew" | "over"; livedMs: number };

export class Session {
  readonly facts: Facts;
  readonly ledger = new Ledger(() => Date.now() + this.clockMs);
  readonly intake: Intake;
  readonly ways: Ways;
  private readonly core: Core;
  private readonly vault: Vault;
  private readonly ladder = new Ladder();
  private capability: Capability | null = null;
  private capabilityAt = 0;
  /** What the core's clock is ahead of this device's, which may be wrong. */
  private clockMs = 0;
  private readonly sleep = new Sleep();
  private slept = false;
  private renewing = false;
  private connection: Connection | null = null;
  /** Begun before the core answered, and what it was asked. */
  private early: Reach | null;
  private asked: Promise<Capability> | null;
  /** When the connection was opened, and when its subscription began. */
  private openedAt = 0;
  private watchingAt: number | null = null;
  private heardAt = 0;
  /** When the connection was last asked for any answer, and gave none yet. */
  private probedAt: number | null = null;
  private cursor: string | undefined;
  private audioOnly: boolean;
  private over = false;
  private wake: (() => void) | null = null;
  private listAfter: string | undefined;
  private listedAt = -Infinity;
  private listing = false;
  /** Not before this the core is asked again: it said so. */
  private coreAfter = -Infinity;
  /** What was here when the connection was cut, as the end of the newest sound. */
  private cutAt: number | null = null;
  /** Since the connection is back: what is to be told when it caught up. */
  private back: { cutAt: number; at: number; long: boolean; told: boolean } | null = null;
  private awaySince: number | null = null;

  constructor(link: Link, audioOnly: boolean, private readonly hooks: Hooks, { core, ways, reach, capability } = begin(link)) {
    this.audioOnly = audioOnly;
    this.facts = { watching: false, watched: false, admitted: false, coreAway: false, relayAway: false, anyChunk: false };
    this.core = core;
    this.ways = ways;
    this.early = reach;
    this.asked = capability;
    this.vault = new Vault("worker.js", { key: () => hooks.key(), lost: () => this.stop("no_worker"), back: () => this.mend() });
    this.intake = new Intake(this.facts, this.ledger, this.vault, this.core, hooks);
  }

  async run(): Promise<void> {
    this.vault.ready().catch(() => this.stop("no_crypto"));
    const beat = setInterval(() => this.beat(performance.now()), 1000);
    while (!this.over && !this.facts.closed) {
      if (!this.capability && !(await this.admit())) break;
      if (this.over || this.facts.closed) break;
      const ended = await this.watch(this.capability as Capability);
      if (ended.after === "over") break;
      if (ended.after === "renew") this.capability = null;
      await this.pause(this.ladder.next(ended.livedMs, Math.random()));
    }
    this.early?.connection.close();
    if (this.over) clearInterval(beat);
  }

  private stop(why: "no_crypto" | "no_worker"): void {
    this.facts.stopped = why;
    this.end();
  }

  /** Ends everything; nothing is kept. */
  end(): void {
    this.over = true;
    this.early?.connection.close();
    this.connection?.close();
    this.wake?.();
    this.vault.end();
  }

  /** The page came back, or the network did. */
  poke(): void {
    this.wake?.();
    this.listedAt = Math.min(this.listedAt, performance.now() - LIST_PAUSE_MS);
    if (this.connection && performance.now() - this.heardAt > TRUSTED_MS) this.connection.close();
  }

  /** The browser says that there is no network. */
  offline(): void {
    if (!this.connection) return;
    this.awaySince = performance.now() - SPOKEN_OF_MS - 1;
    this.facts.relayAway = true;
    this.connection.close();
  }

  setAudioOnly(audioOnly: boolean): void {
    this.audioOnly = audioOnly;
    this.connection?.send(control(kind.LANES, { lanes: this.lanes() }));
  }

  /** What a stretch needs that is not here is asked for. What was refused only if somebody asks for it. */
  want(from: number, to: number, asked = false): void {
    for (const chunk of this.ledger.all()) {
      if (chunk.ended <= from || chunk.started >= to || chunk.here || !chunk.gone || (this.audioOnly && chunk.lane === "video")) continue;
      if (asked) this.intake.ease(chunk);
      else if (chunk.refused || chunk.spoiled) continue;
      this.ask(chunk);
    }
  }

  private lanes(): string[] {
    return this.audioOnly ? [VARIANTS.audio] : [VARIANTS.audio, VARIANTS.video];
  }

  // --- the core ---

  /** Gets a capability; false: there will be none. */
  private async admit(): Promise<boolean> {
    for (let tries = 0; !this.over; tries++) {
      try {
        const asked = this.asked ?? this.core.capability();
        this.asked = null;
        this.admitted(await asked);
        return true;
      } catch (error) {
        if (this.refused(error)) return false;
        const wait = Math.min(1000 * 2 ** tries, 8000) * (0.75 + Math.random() / 2);
        await this.pause(Math.max(wait, this.coreAfter - performance.now()));
      }
    }
    return false;
  }

  private admitted(capability: Capability): void {
    this.capability = capability;
    this.capabilityAt = performance.now();
    if (capability.issuedAt !== undefined) this.clockMs = capability.issuedAt - Date.now();
    this.intake.incident = capability.incident;
    this.intake.signsReceipts = capability.signsReceipts;
    Object.assign(this.facts, { admitted: true, coreAway: false });
  }

  /** Takes an error of the core; true: it is final. */
  private refused(error: unknown): boolean {
    const why = error instanceof CoreRefusal ? error.why : "away";
    if (why === "away" || why === "not_found") {
      this.facts.coreAway = true;
      this.coreAfter = performance.now() + (error instanceof CoreRefusal ? error.afterMs : 0);
      return false;
    }
    this.facts.coreAway = false;
    if (why === "closed") {
      this.facts.closed = true;
      this.connection?.close();
      void this.list();
    } else {
      this.facts.stopped = why === "expired" ? "expired" : "revoked";
      this.connection?.close();
      this.over = true;
    }
    return true;
  }

  private async renew(): Promise<void> {
    if (this.renewing) return;
    this.renewing = true;
    try {
      this.admitted(await this.core.capability());
      this.connection?.send(control(kind.RENEW, { capability: (this.capability as Capability).token }));
    } catch (error) {
      this.refused(error);
      // Asked again in a while; the connection stands until its capability runs out.
      await new Promise((go) => setTimeout(go, Math.max(AWAY_PAUSE_MS, this.coreAfter - performance.now())));
    }
    this.renewing = false;
  }

  /** Reads on in the core's own list. */
  private async list(): Promise<void> {
    if (this.listing) return;
    this.listing = true;
    try {
      for (let more = true; more && !this.over; ) {
        const page = await this.core.chunks(this.listAfter);
        if (page.incident !== undefined) this.intake.incident ||= page.incident;
        if (page.signsReceipts !== undefined) this.intake.signsReceipts = page.signsReceipts;
        for (const listed of page.chunks) await this.intake.listed(listed);
        more = page.next !== undefined && page.chunks.length > 0;
        this.listAfter = page.next ?? this.listAfter;
        if (page.chunks.length) this.facts.anyChunk = true;
      }
      await this.intake.prove();
      this.intake.doubts = 0;
      this.facts.coreAway = false;
    } catch (error) {
      if ((error as CoreRefusal).why !== "closed") this.refused(error);
    }
    this.listing = false;
    this.listedAt = performance.now();
  }

  /** One connection, until it ends. */
  private watch(capability: Capability): Promise<Ended> {
    const begun = performance.now();
    const assembly = new Assembly((chunk) => this.ledger.wants(chunk));
    return new Promise((done) => {
      let after: Ended["after"] = "again";
      const listener: Listener = {
        opened: () => {
          const cursor = this.cursor === undefined ? {} : { cursor: this.cursor };
          const hello = { protocol: 1, capability: capability.token, lanes: this.lanes(), from: "oldest", ...cursor };
          this.openedAt = performance.now();
          this.connection?.send(control(kind.WATCH, hello));
        },
        frames: (frames) => frames.forEach((frame) => (after = this.frame(assembly, frame) ?? after)),
        closed: () => {
          this.connection = null;
          this.disconnected(after);
          done({ after, livedMs: this.watchingAt === null ? 0 : performance.now() - this.watchingAt });
        },
      };
      this.heardAt = this.openedAt = begun;
      this.watchingAt = this.probedAt = null;
      const reach = this.early && !this.early.over ? this.early : new Reach(this.ways);
      this.early = null;
      this.connection = reach.connection;
      reach.take(listener);
    });
  }

  /** Takes a frame; a value is how to go on after the connection. */
  private frame(assembly: Assembly, frame: Frame): Ended["after"] | undefined {
    this.heardAt = performance.now();
    this.probedAt = null;
    this.facts.checking = false;
    const news = assembly.take(frame);
    if (!news) return undefined;
    if (news.what === "watching") this.watching(news.windowStart !== undefined);
    else if (news.what === "cursor") this.cursor = news.cursor;
    else if (news.what === "ending") return this.ending(news.reason);
    else this.intake.take(news);
    return undefined;
  }

  private watching(window: boolean): void {
    Object.assign(this.facts, { watching: true, watched: true, relayAway: false, window });
    this.intake.greeted();
    this.watchingAt = performance.now();
    const cutAt = this.cutAt;
    this.cutAt = null;
    const long = this.slept || (this.awaySince !== null && performance.now() - this.awaySince > SPOKEN_OF_MS);
    this.awaySince = null;
    this.slept = false;
    if (cutAt === null) return;
    this.back = { cutAt, long: long || this.back?.long === true, at: performance.now(), told: false };
    setTimeout(() => this.mend(), SETTLE_MS);
  }

  /** Says what was missed when it is known: with the first new sound, or when no more of the window comes. */
  private tellMissed(now: number): void {
    const { back, intake } = this;
    if (!back || !this.facts.watching || now - back.at < SETTLE_MS) return;
    const sound = this.ledger.of("audio");
    const coming = sound.slice(0, -1).some((chunk) => markOf(chunk) === "receiving");
    const done = !coming && (intake.soundCaughtUp || now - intake.mediaAt > END_OF_REPLAY_MS);
    if (!done) {
      if (back.long && !back.told) this.hooks.catchingUp();
      back.told = true;
      return;
    }
    this.back = null;
    const came = missed(sound, back.cutAt);
    if (back.long || came.missingMs > 0) this.hooks.missed(came);
  }

  /** What was cut off and did not come again is asked for by name: the browser may have had it, and this page not. */
  private mend(): void {
    for (const chunk of cutOff(this.ledger.all()).slice(-MOST_MENDED)) this.ask(chunk);
  }

  private ask(chunk: Chunk): void {
    void this.intake.fetch(chunk, (stream, index) => this.connection?.send(control(kind.FETCH, { stream, index })));
  }

  private ending(reason: string): Ended["after"] {
    const after = afterEnding(reason);
    if (after === "over") {
      this.facts.capture = "ended";
      setTimeout(() => void this.list(), 0);
    }
    return after;
  }

  private disconnected(after: Ended["after"]): void {
    this.facts.watching = false;
    if (after === "again") this.awaySince ??= performance.now();
    if (this.back) this.cutAt ??= this.back.cutAt;
    if (after !== "over" && this.cutAt === null && this.facts.watched) {
      const sound = this.ledger.of("audio").filter((chunk) => chunk.here);
      this.cutAt = sound.length ? (sound[sound.length - 1] as Chunk).ended : null;
    }
    this.ledger.disconnected();
  }

  private beat(now: number): void {
    const { capability, facts } = this;
    const slept = this.sleep.slept(now, Date.now());
    if (slept) this.woke(slept);
    const { connection } = this;
    // Only a relay that stays away is spoken of.
    facts.relayAway = this.awaySince !== null && now - this.awaySince > SPOKEN_OF_MS && !this.over && !facts.closed;
    if (connection && capability && now - this.capabilityAt > (capability.lifeMs / 3) * 2) void this.renew();
    if (connection) this.trust(connection, now);
    this.tellMissed(now);
    facts.idle = facts.watching && now - Math.max(this.watchingAt ?? now, this.intake.mediaAt) > IDLE_MS;
    const pause = facts.coreAway ? AWAY_PAUSE_MS : listPause(this.ledger.all(), this.intake.doubts, facts.capture !== undefined);
    const due = this.listedAt === -Infinity ? facts.closed === true || this.intake.soundCaughtUp || settled(now, this.intake.mediaAt, this.watchingAt) : now - this.listedAt > pause;
    if ((facts.watched || facts.closed) && !facts.stopped && due && now >= this.coreAfter) void this.list();
  }

  /** The device slept, and its steady clock with it: ages are older than they seem, and the connection is most likely dead. */
  private woke(sleptMs: number): void {
    const { facts } = this;
    if (facts.lastSign !== undefined) facts.lastSign -= sleptMs;
    this.capabilityAt -= sleptMs;
    this.coreAfter -= sleptMs;
    this.slept = true;
    facts.checking = true;
    this.connection?.close();
    this.wake?.();
  }

  /** Pings are not told to a page: a connection on which nothing comes is asked for something, and left if nothing is answered. */
  private trust(connection: Connection, now: number): void {
    const { facts } = this;
    if (!facts.watching) {
      if (now - this.openedAt <= GREETING_MS) return;
      this.ways.distrust();
      return connection.close();
    }
    switch (doubt(facts, now - this.heardAt, this.probedAt === null ? null : now - this.probedAt)) {
      case "probe":
        this.probedAt = now;
        // A chunk that is nowhere: the relay says so at once, before all media.
        return connection.send(control(kind.FETCH, { stream: "probe", index: 1 }));
      case "unsure": return void (facts.checking = true);
      case "lost": return connection.close();
      case "none":
    }
  }

  private pause(ms: number): Promise<void> {
    if (this.over) return Promise.resolve();
    return new Promise((go) => {
      const timer = setTimeout(go, ms);
      this.wake = () => {
        clearTimeout(timer);
        go();
      };
    });
  }
}
