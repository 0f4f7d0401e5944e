// What a player must know of a chunk: its codec, where its decode times begin and how long it is. Reads the boxes of a
// fragmented MP4 (ISO/IEC 14496-12). Pure.

export interface Media {
  /** For `isTypeSupported`. */
  type: string;
  /** First decode time in the chunk, seconds. */
  begins: number;
  /** Seconds. */
  duration: number;
}

interface Box {
  kind: string;
  body: number;
  end: number;
}

/** Moves the decode times of a chunk so that it begins at zero, as a file that is played alone. */
export function rebased(chunk: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = chunk.slice() as Uint8Array<ArrayBuffer>;
  try {
    const reader = new Reader(bytes);
    const view = new DataView(bytes.buffer);
    let first: number | undefined;
    for (const moof of reader.boxes(0, bytes.length).filter((box) => box.kind === "moof")) {
      const tfdt = reader.find(moof.body, moof.end, "traf", "tfdt");
      if (!tfdt) continue;
      const wide = reader.u8(tfdt.body) === 1;
      const at = wide ? reader.u64(tfdt.body + 4) : reader.u32(tfdt.body + 4);
      first ??= at;
      if (wide) view.setUint32(tfdt.body + 4, Math.floor((at - first) / 2 ** 32));
      view.setUint32(tfdt.body + (wide ? 8 : 4), (at - first) % 2 ** 32);
    }
  } catch {
    // Not that kind of file: the browser says whether it plays.
  }
  return bytes;
}

class Reader {
  private readonly view: DataView;

  constructor(readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u8 = (at: number): number => this.view.getUint8(at);
  u16 = (at: number): number => this.view.getUint16(at);
  u32 = (at: number): number => this.view.getUint32(at);
  u64 = (at: number): number => this.u32(at) * 2 ** 32 + this.u32(at + 4);
  fourcc = (at: number): string => String.fromCharCode(...this.bytes.subarray(at, at + 4));

  boxes(from: number, to: number): Box[] {
    const out: Box[] = [];
    for (let at = from; at + 8 <= to; ) {
      let [size, head] = [this.u32(at), 8];
      if (size === 1) [size, head] = [this.u64(at + 8), 16];
      if (size === 0) size = to - at;
      if (size < head || at + size > to) throw new RangeError();
      out.push({ kind: this.fourcc(at + 4), body: at + head, end: at + size });
      at += size;
    }
    return out;
  }

  /** The first box along a path. */
  find(from: number, to: number, ...path: string[]): Box | undefined {
    let box: Box | undefined = { kind: "", body: from, end: to };
    for (const kind of path) box = box && this.boxes(box.body, box.end).find((one) => one.kind === kind);
    return box;
  }
}

/** Reads a chunk of one track; `null` if it is not one. */
export function readMedia(bytes: Uint8Array): Media | null {
  try {
    return read(new Reader(bytes));
  } catch {
    return null;
  }
}

function read(reader: Reader): Media | null {
  const all = reader.bytes.length;
  const track = reader.find(0, all, "moov", "trak");
  const mdhd = track && reader.find(track.body, track.end, "mdia", "mdhd");
  const stsd = track && reader.find(track.body, track.end, "mdia", "minf", "stbl", "stsd");
  if (!mdhd || !stsd) return null;
  const timescale = reader.u32(mdhd.body + (reader.u8(mdhd.body) === 1 ? 20 : 12));
  const trex = reader.find(0, all, "moov", "mvex", "trex");
  const usual = trex ? reader.u32(trex.body + 12) : 0;
  const codec = readCodec(reader, stsd);
  if (!codec || !timescale) return null;
  let begins: number | undefined;
  let ends = 0;
  for (const moof of reader.boxes(0, all).filter((box) => box.kind === "moof")) {
    const tfdt = reader.find(moof.body, moof.end, "traf", "tfdt");
    if (!tfdt) return null;
    const at = reader.u8(tfdt.body) === 1 ? reader.u64(tfdt.body + 4) : reader.u32(tfdt.body + 4);
    begins ??= at;
    ends = at + fragmentLength(reader, moof, usual);
  }
  if (begins === undefined || ends <= begins) return null;
  return { type: codec, begins: begins / timescale, duration: (ends - begins) / timescale };
}

function fragmentLength(reader: Reader, moof: Box, usual: number): number {
  const traf = reader.find(moof.body, moof.end, "traf") as Box;
  const boxes = reader.boxes(traf.body, traf.end);
  const tfhd = boxes.find((box) => box.kind === "tfhd") as Box;
  const flags = reader.u32(tfhd.body) & 0xffffff;
  const at = tfhd.body + 8 + (flags & 1 ? 8 : 0) + (flags & 2 ? 4 : 0);
  const each = flags & 8 ? reader.u32(at) : usual;
  let sum = 0;
  for (const trun of boxes.filter((box) => box.kind === "trun")) sum += runLength(reader, trun, each);
  return sum;
}

function runLength(reader: Reader, trun: Box, each: number): number {
  const flags = reader.u32(trun.body) & 0xffffff;
  const count = reader.u32(trun.body + 4);
  if (!(flags & 0x100)) return count * each;
  const stride = [0x100, 0x200, 0x400, 0x800].filter((flag) => flags & flag).length * 4;
  let [at, sum] = [trun.body + 8 + (flags & 1 ? 4 : 0) + (flags & 4 ? 4 : 0), 0];
  for (let i = 0; i < count; i++, at += stride) sum += reader.u32(at);
  return sum;
}

const hex2 = (value: number): string => value.toString(16).padStart(2, "0");

function readCodec(reader: Reader, stsd: Box): string | null {
  const entry = reader.boxes(stsd.body + 8, stsd.end)[0];
  if (!entry) return null;
  if (entry.kind === "avc1" || entry.kind === "avc3") {
    const avcC = reader.find(entry.body + 78, entry.end, "avcC");
    if (!avcC) return null;
    const profile = [1, 2, 3].map((i) => hex2(reader.u8(avcC.body + i))).join("");
    return `video/mp4; codecs="${entry.kind}.${profile}"`;
  }
  if (entry.kind === "mp4a") return `audio/mp4; codecs="mp4a.40.${audioObject(reader, entry)}"`;
  if (entry.kind === "Opus") return 'audio/mp4; codecs="opus"';
  return null;
}

/** The audio object type of an `esds` box; AAC-LC where it can't be read. */
function audioObject(reader: Reader, entry: Box): number {
  const esds = reader.find(entry.body + 28, entry.end, "esds");
  if (!esds) return 2;
  let at = esds.body + 4;
  while (at < esds.end) {
    const tag = reader.u8(at++);
    let length = 0;
    for (let more = true; more; ) {
      const byte = reader.u8(at++);
      length = length * 128 + (byte & 0x7f);
      more = byte > 0x7f;
    }
    if (tag === 3) at += 3 + flagged(reader.u8(at + 2));
    else if (tag === 4) at += 13;
    else if (tag === 5) return reader.u8(at) >> 3 || 2;
    else at += length;
  }
  return 2;
}

/** Optional bytes after an ES descriptor's flags: the cases that are met have none. */
const flagged = (flags: number): number => (flags & 0x80 ? 2 : 0) + (flags & 0x20 ? 2 : 0);
