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
