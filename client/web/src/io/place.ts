// Where the link is kept: in the fragment until it is read, then in the state of this one history entry.

export interface Kept {
  fragment?: string;
  audioOnly?: boolean;
  forgotten?: boolean;
}

/** Takes the link out of the address bar. */
export function arrive(): Kept {
  const state = (history.state ?? {}) as Kept;
  if (location.hash.length <= 1) return state;
  const kept: Kept = { fragment: location.hash };
  keep(kept);
  return kept;
}

export function keep(kept: Kept): void {
  history.replaceState(kept, "", location.pathname + location.search);
}

/** How long going back one entry may take. */
const BACK_MS = 1_000;

/**
 * Another link was opened in this tab, which made an entry of its own. It goes into the entry before, so that one entry knows
 * one link: forgetting it leaves none behind.
 */
export async function replaced(): Promise<void> {
  if (location.hash.length <= 1) return;
  const kept: Kept = { fragment: location.hash };
  keep({});
  await new Promise((gone) => {
    addEventListener("popstate", gone, { once: true });
    setTimeout(gone, BACK_MS);
    history.back();
  });
  keep(kept);
  location.reload();
}
