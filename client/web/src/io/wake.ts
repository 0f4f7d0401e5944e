// Keeps the screen on while something plays.

interface Lock extends EventTarget {
  release(): Promise<void>;
}

/** Pieces come one after the other: what stands still for less goes on. */
const LINGER_MS = 5_000;
/** A browser that refuses, on low battery for one, is asked again after this time. */
const AGAIN_MS = 30_000;

export class Wake {
  private lock: Lock | null = null;
  private asking = false;
  private wanted = false;
  private playedAt = -Infinity;
  private notBefore = -Infinity;

  /** Is told again and again whether something plays. */
  tick(plays: boolean, now: number): void {
    if (plays) this.playedAt = now;
    // A browser lets go of it when the page is hidden, and gives none then.
    this.wanted = now - this.playedAt < LINGER_MS && document.visibilityState === "visible";
    if (!this.wanted) this.release();
    else if (!this.lock && !this.asking && now >= this.notBefore) void this.take(now);
  }

  /** Somebody tapped, or looks at the page again: what was refused may be given now. */
  again(): void {
    this.notBefore = -Infinity;
  }

  private release(): void {
    void this.lock?.release().catch(() => undefined);
    this.lock = null;
  }

  private async take(now: number): Promise<void> {
    this.asking = true;
    this.notBefore = now + AGAIN_MS;
    const api = (navigator as { wakeLock?: { request(kind: "screen"): Promise<Lock> } }).wakeLock;
    try {
      const lock = (await api?.request("screen")) ?? null;
      this.lock = lock;
      lock?.addEventListener("release", () => {
        if (this.lock === lock) this.lock = null;
      });
      // Nothing may play any more since the browser was asked.
      if (!this.wanted) this.release();
    } catch {
      // Not allowed now.
    }
    this.asking = false;
  }
}
