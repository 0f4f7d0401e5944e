// The core, as a contact with a grant may ask it.

import type { Begins } from "../rules/assembly";
import { laneOf } from "../rules/assembly";
import { type CoreKey, lifeOf, readKeys } from "../rules/receipt";

/** An answer that takes longer counts as none. */
const PATIENCE_MS = 15_000;
const MAX_CHUNK = 32 * 1024 * 1024;

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
}

export interface Listed {
  ref: string;
  chunk: Omit<Begins, "state" | "replay">;
  receipt?: string;
}

export class Core {
  constructor(private readonly base: string, private readonly grant: string) {}

  async capability(): Promise<Capability> {
    const value = await this.json("/v1/contact/capability", { method: "POST", body: "{}" });
    const { capability, incident, signs_receipts } = value;
    if (typeof capability !== "string" || typeof incident !== "string") throw new CoreRefusal("away");
    return { token: capability, incident, signsReceipts: signs_receipts === true, lifeMs: lifeOf(capability) ?? 60_000 };
  }

  /** A page of what the core has, in the order it was stored. */
  async chunks(after: string | undefined): Promise<{ chunks: Listed[]; next?: string }> {
    const query = after === undefined ? "" : `&after=${encodeURIComponent(after)}`;
    const value = await this.json(`/v1/contact/chunks?limit=500${query}`);
    const list = Array.isArray(value["chunks"]) ? value["chunks"] : [];
    const out: { chunks: Listed[]; next?: string } = { chunks: list.flatMap(readListed) };
    if (typeof value["next"] === "string") out.next = value["next"];
    return out;
  }

  /** The sealed bytes of a chunk. */
  async bytes(ref: string): Promise<Uint8Array<ArrayBuffer>> {
    const answer = await this.fetch(`/v1/contact/chunks/${encodeURIComponent(ref)}`, {});
    if (Number(answer.headers.get("content-length") ?? 0) > MAX_CHUNK) throw new CoreRefusal("not_found");
    return new Uint8Array(await answer.arrayBuffer());
  }

  async keys(): Promise<CoreKey[]> {
    return readKeys(await this.json("/v1/relay/jwks", {}, false));
  }

  private async json(path: string, init: RequestInit = {}, authorized = true): Promise<Record<string, unknown>> {
    const answer = await this.fetch(path, init, authorized);
    try {
      return (await answer.json()) as Record<string, unknown>;
    } catch {
      throw new CoreRefusal("away");
    }
  }

  private async fetch(path: string, init: RequestInit, authorized = true): Promise<Response> {
    const stop = new AbortController();
    const late = setTimeout(() => stop.abort(), PATIENCE_MS);
    const headers: Record<string, string> = authorized ? { authorization: `Bearer ${this.grant}` } : {};
    if (init.body) headers["content-type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(this.base + path, {
        ...init, headers, signal: stop.signal, cache: "no-store", credentials: "omit", mode: "cors", redirect: "error",
        referrerPolicy: "no-referrer",
      });
    } catch {
      throw new CoreRefusal("away");
    } finally {
      clearTimeout(late);
    }
    if (answer.ok) return answer;
    throw await refusal(answer);
  }
}

async function refusal(answer: Response): Promise<CoreRefusal> {
  let code: unknown;
  try {
    code = ((await answer.json()) as { error?: { code?: unknown } }).error?.code;
  } catch {
    // No JSON: something between here and the core answered.
  }
  const after = Number(answer.headers.get("retry-after") ?? 0) * 1000;
  switch (code) {
    case "grant_revoked": return new CoreRefusal("revoked");
    case "grant_expired": return new CoreRefusal("expired");
    case "grant_unknown": return new CoreRefusal("unknown");
    case "incident_closed": return new CoreRefusal("closed");
    case "not_found": return new CoreRefusal("not_found");
    default: return new CoreRefusal("away", after);
  }
}

function readListed(value: unknown): Listed[] {
  const { ref, stream, variant, media, index, length, sha256, started, ended, receipt } = (value ?? {}) as Record<string, unknown>;
  const lane = typeof variant === "string" ? laneOf(variant) : null;
  const [from, to] = [started, ended].map((at) => (typeof at === "string" ? Date.parse(at) : NaN)) as [number, number];
  if (!lane || typeof ref !== "string" || typeof stream !== "string" || typeof media !== "string") return [];
  if (typeof index !== "number" || typeof length !== "number" || typeof sha256 !== "string" || Number.isNaN(from + to)) return [];
  const listed: Listed = { ref, chunk: { stream, index, lane, media, length, sha256, started: from, ended: to } };
  if (typeof receipt === "string") listed.receipt = receipt;
  return [listed];
}
