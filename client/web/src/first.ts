// The page's first script: it stands before the rest in the one file, so that what takes round trips is under way while the
// rest is still on its way. The rest takes the modules it needs from here (see build.mjs).

import { type Begun, begin } from "./io/begin";
import { arrive } from "./io/place";
import { type Link, readLink } from "./rules/link";

export * as begin from "./io/begin";
export * as core from "./io/core";
export * as place from "./io/place";
export * as transport from "./io/transport";
export * as bytes from "./rules/bytes";
export * as frames from "./rules/frames";
export * as link from "./rules/link";
export * as receipt from "./rules/receipt";

/** Without these there is no page but a screen that says so. */
const usable = typeof crypto !== "undefined" && !!crypto.subtle && typeof Worker !== "undefined" && typeof WebSocket !== "undefined";

const { fragment } = arrive();
/** The link of this page, if it is one. */
export const opened = fragment === undefined ? null : readLink(fragment);
export const begun: Begun | null = opened && usable ? tried(opened) : null;

/** A browser that does not have something, or may not use it: better a screen that says so than an empty page. */
function tried(link: Link): Begun | null {
  try {
    return begin(link);
  } catch {
    return null;
  }
}
