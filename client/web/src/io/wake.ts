// Keeps the screen on while somebody watches.

interface Lock {
  release(): Promise<void>;
}

export class Wake {
  private lock: Lock | null = null;
  private wanted = false;

  async want(on: boolean): Promise<void> {
    if (!on && !this.wanted) return;
    this.wanted = on;
    if (!on) {
      void this.lock?.release().catch(() => undefined);
      this.lock = null;
    } else if (!this.lock) {
      await this.take();
    }
  }

  /** The browser lets go of it whenever the page is hidden. */
  async returned(): Promise<void> {
    this.lock = null;
    if (this.wanted) await this.take();
  }

  private async take(): Promise<void> {
    const api = (navigator as { wakeLock?: { request(kind: "screen"): Promise<Lock> } }).wakeLock;
    try {
      const lock = (await api?.request("screen")) ?? null;
      // It may have ended while the browser was asked.
      if (!this.wanted) return void lock?.release().catch(() => undefined);
      this.lock = lock;
    } catch {
      // Not allowed now, on low battery for one.
    }
  }
}
