// What was received, as one file: the opened pieces and a list of what was safe.

import { hex, utf8 } from "./rules/bytes";
import type { Lane } from "./rules/assembly";
import { type Ledger, markOf } from "./rules/ledger";
import { type Entry, zip } from "./rules/zip";
import type { Shelf } from "./io/kept";

const FOLDERS: Record<Lane, string> = { audio: "sound", video: "picture" };

export interface Saved {
  file: Blob;
  name: string;
  pieces: number;
  /** Pieces that were here once and were freed. */
  without: number;
}

export async function save(ledger: Ledger, shelf: Shelf, incident: string, readme: string, now: Date): Promise<Saved> {
  const files: Entry[] = [];
  const chunks: object[] = [];
  let without = 0;
  const count: Record<Lane, number> = { audio: 0, video: 0 };
  for (const chunk of ledger.all()) {
    const bytes = chunk.here ? shelf.get(chunk.stream, chunk.index) : undefined;
    const about: Record<string, unknown> = {
      stream: chunk.stream, index: chunk.index, lane: chunk.lane, media: chunk.media,
      started: iso(chunk.started - chunk.shift), ended: iso(chunk.ended - chunk.shift), shown_later_by_ms: chunk.shift || undefined, times: chunk.times === "relay" ? "relay, not proven" : chunk.times,
      state: markOf(chunk), confirmed_by: chunk.proof, sealed_length: chunk.length || undefined, sealed_sha256: chunk.sha256 || undefined,
      receipt: chunk.receipt, why: chunk.why,
    };
    if (!bytes) about["not_in_file"] = chunk.seen ? "seen here, freed for room" : chunk.why ?? "not here";
    if (!bytes && chunk.seen) without++;
    if (bytes) {
      const place = String(++count[chunk.lane]).padStart(5, "0");
      const time = iso(chunk.started).replace(/[-:]/g, "").replace(/\.\d+/, "");
      const name = `${FOLDERS[chunk.lane]}/${place}-${time}.mp4`;
      files.push({ name, bytes });
      about["file"] = name;
      about["file_sha256"] = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
    }
    chunks.push(about);
  }
  const manifest = { format: "waystation-contact-save-1", saved_at: now.toISOString(), incident, chunks };
  const texts = [{ name: "manifest.json", bytes: utf8(JSON.stringify(manifest, null, 1)) }, { name: "README.txt", bytes: utf8(readme) }];
  const archive = zip([...texts, ...files], now);
  const stamp = now.toISOString().slice(0, 19).replace(/[-:]/g, "");
  return { file: new Blob(archive as BlobPart[], { type: "application/zip" }), name: `recording-${stamp}Z.zip`, pieces: files.length, without };
}

/** A time as text; the ends of time for what no date can hold. */
const iso = (at: number): string => new Date(Math.min(Math.max(at || 0, -8.64e15), 8.64e15)).toISOString();

export function download({ file, name }: Saved): void {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(file);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
}
