// The core, as a contact with a grant may ask it.

import { laneOf } from "../rules/assembly";
import { joined, jsonObject } from "../rules/bytes";
import type { Item } from "../rules/ledger";
import { type CoreKey, lifeOf, readKeys } from "../rules/receipt";

/** An answer of which nothing comes for so long counts as none, */
const PATIENCE_MS = 15_000;
/** and so does one that is not whole by then. */
const WHOLE_MS = 120_000;
const MAX_CHUNK = 32 * 1024 * 1024;
const MAX_JSON = 4 * 1024 * 1024;
/** Longest pause that the core may ask for. */
const MAX_AFTER_S = 120;

/** The core does not give it. `away`: it may later. */
export class CoreRefusal extends Error {
  constructor(readonly why: "away" | "revoked" | "expired" | "unknown" | "closed" | "not_found", readonly afterMs = 0) {
    super(why);
  }
}

export interface Capability {
  token: string;
  incident: string;
  signsReceipts: boolean;
  /** How long it is good from now on. */
  lifeMs: number;
  /** When the core says that it gave it: a clock to go by. */
  issuedAt?: number;
}

export interface Listed {
  ref: string;
  chunk: Item;
  receipt?: string;
}

export interface Listing {
  chunks: Listed[];
  next?: string;
  incident?: string;
  signsReceipts?: boolean;
}

export class Core {
  constructor(private readonly base: string, private readonly grant: string) {}

  async capability(): Promise<Capability> {
    const value = await this.json("/v1/contact/capability", { method: "POST", body: "{}" });
    const { capability, incident, signs_receipts } = value;
    if (typeof capability !== "string" || typeof incident !== "string") throw new CoreRefusal("away");
    const { lifeMs = 60_000, issuedAt } = lifeOf(capability);
    return { token: capability, incident, signsReceipts: signs_receipts === true, lifeMs, ...(issuedAt === undefined ? {} : { issuedAt }) };
  }

  /** A page of what the core has, in the order it was stored. */
  async chunks(after: string | undefined): Promise<Listing> {
    const query = after === undefined ? "" : `&after=${encodeURIComponent(after)}`;
    const value = await this.json(`/v1/contact/chunks?limit=500${query}`);
    const list = Array.isArray(value["chunks"]) ? value["chunks"] : [];
    const out: Listing = { chunks: list.flatMap(readListed) };
    if (typeof value["next"] === "string") out.next = value["next"];
    if (typeof value["incident"] === "string") out.incident = value["incident"];
    if (typeof value["signs_receipts"] === "boolean") out.signsReceipts = value["signs_receipts"];
    return out;
  }

  /** The sealed bytes of a chunk, which are so many. */
  async bytes(ref: string, length: number): Promise<Uint8Array<ArrayBuffer>> {
    return this.fetch(`/v1/contact/chunks/${encodeURIComponent(ref)}`, {}, Math.min(length, MAX_CHUNK));
  }

  async keys(): Promise<CoreKey[]> {
    return readKeys(await this.json("/v1/relay/jwks", {}, false));
  }

  private async json(path: string, init: RequestInit = {}, authorized = true): Promise<Record<string, unknown>> {
    const value = jsonObject(await this.fetch(path, init, MAX_JSON, authorized));
    if (!value) throw new CoreRefusal("away");
    return value;
  }

  private async fetch(path: string, init: RequestInit, most: number, authorized = true): Promise<Uint8Array<ArrayBuffer>> {
    const stop = new AbortController();
    const whole = setTimeout(() => stop.abort(), WHOLE_MS);
    let late = setTimeout(() => stop.abort(), PATIENCE_MS);
    const alive = (): void => {
      clearTimeout(late);
      late = setTimeout(() => stop.abort(), PATIENCE_MS);
    };
    const headers: Record<string, string> = authorized ? { authorization: `Bearer ${this.grant}` } : {};
    if (init.body) headers["content-type"] = "application/json";
    try {
      const answer = await fetch(this.base + path, {
        ...init, headers, signal: stop.signal, cache: "no-store", credentials: "omit", mode: "cors", redirect: "error",
        referrerPolicy: "no-referrer",
      });
      const bytes = await read(answer, answer.ok ? most : MAX_JSON, alive);
      if (answer.ok) return bytes;
      throw refusal(answer, bytes);
    } catch (error) {
      // What is not read is not waited for.
      stop.abort();
      throw error instanceof CoreRefusal ? error : new CoreRefusal("away");
    } finally {
      clearTimeout(late);
      clearTimeout(whole);
    }
  }
}

/** The body, if it is not longer than it may be. */
async function read(answer: Response, most: number, alive: () => void): Promise<Uint8Array<ArrayBuffer>> {
  const parts: Uint8Array[] = [];
  const reader = answer.body?.getReader();
  for (let size = 0; reader; ) {
    const { done, value } = await reader.read();
    if (done) break;
    alive();
    size += value.length;
    if (size > most) throw new CoreRefusal("not_found");
    parts.push(value);
  }
  return joined(parts);
}

/** How long the core asks to wait, milliseconds; nothing that it says makes it long. */
export function retryAfter(text: string | null): number {
  const seconds = Number(text ?? 0);
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), MAX_AFTER_S) * 1000 : 0;
}

function refusal(answer: Response, bytes: Uint8Array): CoreRefusal {
  // No JSON: something between here and the core answered.
  const code = (jsonObject(bytes)?.["error"] as { code?: unknown } | null | undefined)?.code;
  switch (code) {
    case "grant_revoked": return new CoreRefusal("revoked");
    case "grant_expired": return new CoreRefusal("expired");
    case "grant_unknown": return new CoreRefusal("unknown");
    case "incident_closed": return new CoreRefusal("closed");
    case "not_found": return new CoreRefusal("not_found");
    default: return new CoreRefusal("away", retryAfter(answer.headers.get("retry-after")));
  }
}

function readListed(value: unknown): Listed[] {
  const { ref, stream, variant, media, index, length, sha256, started, ended, receipt } = (value ?? {}) as Record<string, unknown>;
  const lane = typeof variant === "string" ? laneOf(variant) : null;
  const [from, to] = [started, ended].map((at) => (typeof at === "string" ? Date.parse(at) : NaN)) as [number, number];
  if (!lane || typeof ref !== "string" || typeof stream !== "string" || typeof media !== "string") return [];
  if (!isCount(index) || !isCount(length) || typeof sha256 !== "string" || Number.isNaN(from + to)) return [];
  const listed: Listed = { ref, chunk: { stream, index, lane, media, length, sha256, started: from, ended: Math.max(from, to) } };
  if (typeof receipt === "string") listed.receipt = receipt;
  return [listed];
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
