// Where the link is kept: in the fragment until it is read, then in the state of this one history entry.

export interface Kept {
  fragment?: string;
  audioOnly?: boolean;
  forgotten?: boolean;
}

export const kept = (): Kept => (history.state ?? {}) as Kept;

/** Takes the link out of the address bar. */
export function arrive(): Kept {
  if (location.hash.length <= 1) return kept();
  keep({ fragment: location.hash });
  return kept();
}

export function keep(all: Kept): void {
  history.replaceState(all, "", location.pathname + location.search);
}

/** How long going back one entry may take. */
const BACK_MS = 1_000;

/**
 * Another link was opened in this tab, which made an entry of its own. It goes into the entry before, so that one entry knows
 * one link: forgetting it leaves none behind.
 */
export async function replaced(): Promise<void> {
  if (location.hash.length <= 1) return;
  const link: Kept = { fragment: location.hash };
  keep({});
  await new Promise((gone) => {
    addEventListener("popstate", gone, { once: true });
    setTimeout(gone, BACK_MS);
    history.back();
  });
  keep(link);
  location.reload();
}
