// The contact's link: what stands behind `#w1.`. Pure.

import { fromBase64url, jsonObject, toBase64url, utf8 } from "./bytes";

const PREFIX = "w1.";
/** Longest fragment that is read. */
const MAX_CHARS = 8192;

export interface Link {
  relay: string;
  core: string;
  grant: string;
  webTransport?: { url: string; hashes: Uint8Array<ArrayBuffer>[] };
}

/** Reads a fragment, with or without its `#`; `null` if it is no link. The key is read apart, when it is needed. */
export function readLink(fragment: string): Link | null {
  const value = members(fragment);
  if (!value || !readKey(fragment)) return null;
  const relay = base(value["relay"]);
  const core = base(value["core"]);
  const grant = value["grant"];
  if (!relay || !core || typeof grant !== "string" || fromBase64url(grant)?.length !== 32) return null;
  const link: Link = { relay, core, grant };
  const webTransport = readWebTransport(value["wt"]);
  if (webTransport) link.webTransport = webTransport;
  else if (relay.startsWith("https:")) link.webTransport = { url: relay, hashes: [] };
  return link;
}

/** The group key of a link, 32 bytes that nobody else has; `null` if there is none. */
export function readKey(fragment: string): Uint8Array<ArrayBuffer> | null {
  const text = members(fragment)?.["key"];
  const key = typeof text === "string" ? fromBase64url(text) : null;
  return key?.length === 32 ? key : null;
}

function members(fragment: string): Record<string, unknown> | null {
  const text = fragment.replace(/^#/, "");
  if (!text.startsWith(PREFIX) || text.length > MAX_CHARS) return null;
  const bytes = fromBase64url(text.slice(PREFIX.length));
  return bytes && jsonObject(bytes);
}

/** Writes one, for tests. */
export function writeLink(members: object): string {
  return PREFIX + toBase64url(utf8(JSON.stringify(members)));
}

/** Where the relay's `/watch` is, as a WebSocket. */
export const watchUrl = (link: Link): string => `${link.relay.replace(/^http/, "ws")}/watch`;

function readWebTransport(value: unknown): Link["webTransport"] {
  if (typeof value !== "object" || value === null) return undefined;
  const { url, hashes } = value as { url?: unknown; hashes?: unknown };
  const where = base(url);
  if (!where?.startsWith("https:")) return undefined;
  const texts = Array.isArray(hashes) ? hashes.filter((hash): hash is string => typeof hash === "string") : [];
  return { url: where, hashes: texts.map(fromBase64url).filter((hash): hash is Uint8Array<ArrayBuffer> => hash?.length === 32) };
}

/** A base URL without the slash at its end; without TLS on this machine only, by the names that the page's policy can hold. */
function base(value: unknown): string | null {
  if (typeof value !== "string") return null;
  let url: URL;
  try {
    url = new URL(value);
  } catch {
    return null;
  }
  const local = ["127.0.0.1", "localhost"].includes(url.hostname);
  const fine = url.protocol === "https:" || (url.protocol === "http:" && local);
  if (!fine || url.username || url.password || url.search || url.hash) return null;
  return url.origin + url.pathname.replace(/\/+$/, "");
}
