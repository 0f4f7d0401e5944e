// A ZIP archive without compression: what is saved is compressed already. Pure.

import { utf8 } from "./bytes";

export interface Entry {
  name: string;
  bytes: Uint8Array;
}

const TABLE = Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let i = 0; i < 8; i++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

export function crc32(bytes: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of bytes) value = (TABLE[(value ^ byte) & 0xff] as number) ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Writes an archive, as its parts: together they would be in memory twice. `at` is the time of its files. */
export function zip(entries: Entry[], at: Date): Uint8Array[] {
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const title = utf8(name);
    const common = fields([[20, 2], [0x800, 2], [0, 2], [dosTime(at), 2], [dosDate(at), 2], [crc32(bytes), 4], [bytes.length, 4],
      [bytes.length, 4], [title.length, 2], [0, 2]]);
    parts.push(fields([[0x04034b50, 4]]), common, title, bytes);
    directory.push(fields([[0x02014b50, 4], [20, 2]]), common, fields([[0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), title);
    offset += 4 + common.length + title.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = entries.length;
  const end = fields([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]]);
  return [...parts, ...directory, end];
}

function fields(list: [number, number][]): Uint8Array {
  const out: number[] = [];
  for (const [value, size] of list) for (let i = 0; i < size; i++) out.push(Math.floor(value / 256 ** i) % 256);
  return Uint8Array.from(out);
}

const dosTime = (at: Date): number => (at.getHours() << 11) | (at.getMinutes() << 5) | (at.getSeconds() >> 1);
const dosDate = (at: Date): number => ((Math.max(at.getFullYear(), 1980) - 1980) << 9) | ((at.getMonth() + 1) << 5) | at.getDate();
