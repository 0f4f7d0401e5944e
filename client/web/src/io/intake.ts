// What becomes of what the relay tells: bytes to the worker, news to the ledger, facts to the status.

import type { Begins, Happening } from "../rules/assembly";
import { type Chunk, type Item, keyOf, type Ledger } from "../rules/ledger";
import { Pauses } from "../rules/pauses";
import { type Facts, greeted } from "../rules/status";
import type { CoreKey } from "../rules/receipt";
import { type Core, type Listed } from "./core";
import { Shelf } from "./kept";
import type { Vault } from "./vault";

/** The core's keys are asked for at most this often: a relay that makes up keys makes no storm. */
const KEYS_PAUSE_MS = 30_000;
const MAX_EARLY = 1000;
const MAX_UNPROVEN = 2000;
/** Chunks fetched at once. */
const MAX_FETCHES = 4;
/** A chunk that was asked for is asked for again after this time, then after twice as long. */
const FETCH_PAUSE_MS = 8000;

export interface Shown {
  /** A chunk is whole and open. */
  show(chunk: Chunk, bytes: Uint8Array<ArrayBuffer>): void;
}

export class Intake {
  readonly shelf = new Shelf((stream, index) => this.ledger.freed(stream, index));
  incident = "";
  signsReceipts = true;
  /** A confirmation came that only the core's own list can prove. */
  doubts = 0;
  /** Since the last connection a chunk came that was not there before. */
  caughtUp = false;
  /** The same, of sound. */
  soundCaughtUp = false;
  /** When bytes last came, of any chunk. */
  mediaAt = -Infinity;
  /** Bytes of each lane that came from the relay. */
  readonly received = { audio: 0, video: 0 };
  private keys: CoreKey[] = [];
  private keysAskedAt = -Infinity;
  private readonly early = new Map<string, string | undefined>();
  private readonly asked = new Pauses(FETCH_PAUSE_MS);
  private fetching = 0;
  /** What the core lists with receipts that could not be checked yet. */
  private readonly unproven = new Map<string, Listed>();

  constructor(readonly facts: Facts, readonly ledger: Ledger, private readonly vault: Vault, private readonly core: Core, private readonly shown: Shown) {}

  take(news: Happening): void {
    const { ledger, facts } = this;
    switch (news.what) {
      case "begins": return this.begins(news.chunk);
      case "progress":
        this.mediaAt = performance.now();
        if (!news.replay) this.sign(0);
        return ledger.progress(news.stream, news.index, news.received / news.length);
      case "whole": return void this.open(news.chunk, news.bytes);
      case "torn": return ledger.bad(news.stream, news.index, "torn");
      case "withdrawn": return ledger.withdrawn(news.stream, news.index, news.reason);
      case "state": return void this.state(news.stream, news.index, news.state, news.receipt);
      case "omitted": return ledger.omitted(news.stream, news.from, news.to, news.reason);
      case "stream": return void ledger.stream(news.stream, news.lane, news.follows);
      case "capture":
        facts.capture = news.event === "silent" || news.event === "ended" ? news.event : undefined;
        return this.sign(news.lastSign, true);
      case "sign": return this.sign(news.lastSign, true);
    }
  }

  /** A new connection: what the one before said of the phone is over. */
  greeted(): void {
    greeted(this.facts);
    this.caughtUp = this.soundCaughtUp = false;
    this.mediaAt = performance.now();
  }

  /** What the core's own list says. Where the core signs, only its signature makes it safe. */
  async listed(listed: Listed): Promise<void> {
    const { chunk, ref, receipt } = listed;
    if (!this.signsReceipts && receipt === undefined) return this.ledger.coreHas(chunk, ref, "core");
    const known = this.ledger.get(chunk.stream, chunk.index);
    const proven = known?.proof === "receipt" && known.sha256 === chunk.sha256;
    const verified = proven || receipt === undefined ? "invalid" : await this.check(chunk, receipt);
    if (verified === "verified") return this.ledger.coreHas(chunk, ref, "receipt", receipt);
    this.ledger.coreHas(chunk, ref, this.signsReceipts ? undefined : "core");
    if (verified !== "no_keys" || !this.signsReceipts) return;
    this.unproven.set(ref, listed);
    if (this.unproven.size > MAX_UNPROVEN) this.unproven.delete(this.unproven.keys().next().value as string);
  }

  /** Checks again what could not be checked for want of the core's keys. */
  async prove(): Promise<void> {
    const waiting = [...this.unproven.values()];
    this.unproven.clear();
    for (const listed of waiting) await this.listed(listed);
  }

  /** Gets what is missing, from the core where it has it, else from the relay. What does not come, or does not open, is asked for ever more seldom. */
  async fetch(chunk: Chunk, askRelay: (stream: string, index: number) => void): Promise<void> {
    if (chunk.here || this.fetching >= MAX_FETCHES || !this.asked.due(keyOf(chunk.stream, chunk.index), performance.now())) return;
    if (chunk.ref === undefined) return askRelay(chunk.stream, chunk.index);
    this.fetching++;
    try {
      await this.open({ ...chunk, state: "confirmed", replay: true }, await this.core.bytes(chunk.ref, chunk.length));
    } catch {
      // It is asked for again while it is wanted.
    }
    this.fetching--;
  }

  /** Somebody wants this one: it is not too late. */
  ease(chunk: Chunk): void {
    this.asked.ease(keyOf(chunk.stream, chunk.index));
  }

  private begins(chunk: Begins): void {
    this.facts.anyChunk = true;
    this.mediaAt = performance.now();
    this.ledger.begins(chunk, performance.now());
    if (!chunk.replay) {
      this.caughtUp = true;
      if (chunk.lane === "audio") this.soundCaughtUp = true;
      this.sign(0);
    }
    const key = keyOf(chunk.stream, chunk.index);
    if (this.early.has(key)) void this.state(chunk.stream, chunk.index, "confirmed", this.early.get(key));
    this.early.delete(key);
    if (chunk.state !== "arriving" && chunk.state !== "near_live_unconfirmed") void this.state(chunk.stream, chunk.index, chunk.state);
  }

  /**
   * `said`: the relay speaks of the phone's signs. Its word overtakes media, which on a thin link comes long after the phone
   * sent it; so while it has not said that the phone is quiet, the phone is not. What was stored before says nothing of now.
   */
  private sign(secondsAgo: number, said = false): void {
    const { facts } = this;
    if (said) facts.quiet = secondsAgo > 0 || facts.capture !== undefined;
    else if (facts.quiet) return;
    facts.lastSign = performance.now() - secondsAgo * 1000;
  }

  private async open(chunk: Begins, sealed: Uint8Array<ArrayBuffer>): Promise<void> {
    const { stream, index, media, sha256 } = chunk;
    this.received[chunk.lane] += sealed.length;
    const opened = await this.vault.open({ identity: { incident: this.incident, stream, media, index }, sha256, bytes: sealed });
    const known = this.ledger.get(stream, index);
    if (known?.sha256 !== sha256) return;
    if (opened.bad === "busy") return this.ledger.withdrawn(stream, index, "busy");
    if (!opened.plaintext) return this.ledger.bad(stream, index, opened.bad ?? "sealed");
    this.ledger.opened(stream, index);
    this.asked.clear(keyOf(stream, index));
    this.shelf.put(stream, index, chunk.lane, opened.plaintext);
    this.facts.anyChunk = true;
    this.shown.show(known, opened.plaintext.slice());
  }

  private async state(stream: string, index: number, state: string, receipt?: string): Promise<void> {
    const { ledger } = this;
    if (state === "rejected" || state === "terminal_failure") return ledger.rejected(stream, index, state);
    if (state !== "confirmed") return;
    const chunk = ledger.get(stream, index);
    if (!chunk || chunk.times === "guessed") {
      // A receipt speaks of a length and a digest: it waits for them.
      this.early.set(keyOf(stream, index), receipt);
      if (this.early.size > MAX_EARLY) this.early.delete(this.early.keys().next().value as string);
      return;
    }
    if (chunk.proof === "receipt") return;
    const { sha256 } = chunk;
    if (receipt === undefined) {
      if (!this.signsReceipts) ledger.confirmed(stream, index, "relay", sha256);
      else if (!chunk.proof) this.doubts++;
      return;
    }
    const verified = await this.check(chunk, receipt);
    if (verified === "verified") ledger.confirmed(stream, index, "receipt", sha256, receipt);
    else if (verified === "no_keys" && !this.signsReceipts) ledger.confirmed(stream, index, "relay", sha256);
    else this.doubts++;
  }

  private async check(chunk: Item, receipt: string): Promise<"verified" | "invalid" | "no_keys"> {
    const { stream, index, length, sha256 } = chunk;
    const of = { incident: this.incident, stream, index, length, sha256 };
    let verified = await this.vault.verify(receipt, of, this.keys);
    if (verified === "unknown_key" && (await this.askKeys())) verified = await this.vault.verify(receipt, of, this.keys);
    return verified === "unknown_key" ? "no_keys" : verified;
  }

  private asking: Promise<boolean> | null = null;

  private askKeys(): Promise<boolean> {
    if (this.asking) return this.asking;
    if (performance.now() - this.keysAskedAt < KEYS_PAUSE_MS) return Promise.resolve(false);
    this.keysAskedAt = performance.now();
    const ask = async (): Promise<boolean> => {
      try {
        this.keys = await this.core.keys();
        return true;
      } catch {
        // The core is away; its list says later what it has.
        this.keysAskedAt = performance.now() - KEYS_PAUSE_MS + 2000;
        return false;
      } finally {
        this.asking = null;
      }
    };
    return (this.asking = ask());
  }
}
