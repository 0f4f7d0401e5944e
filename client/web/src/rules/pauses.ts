// What did not work is tried again, each time after twice the pause. Pure; times in milliseconds.

const MOST_MS = 10 * 60_000;
const MAX_KEYS = 1000;

export class Pauses {
  private readonly tried = new Map<string, { at: number; pause: number }>();

  constructor(private readonly firstMs: number) {}

  /** Whether it may be tried now, and notes that it is. */
  due(key: string, now: number): boolean {
    const last = this.tried.get(key);
    if (last && now - last.at < last.pause) return false;
    // What was tried last is forgotten last.
    this.tried.delete(key);
    this.tried.set(key, { at: now, pause: last ? Math.min(last.pause * 2, MOST_MS) : this.firstMs });
    if (this.tried.size > MAX_KEYS) this.tried.delete(this.tried.keys().next().value as string);
    return true;
  }

  /** Somebody asks for it: only the first pause holds. */
  ease(key: string): void {
    const last = this.tried.get(key);
    if (last) last.pause = this.firstMs;
  }

  /** It worked. */
  clear(key: string): void {
    this.tried.delete(key);
  }
}
