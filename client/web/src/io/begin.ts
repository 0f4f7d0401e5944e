// What takes round trips, begun: the core is asked for a capability, and the relay reached for.

import type { Link } from "../rules/link";
import { type Capability, Core } from "./core";
import { Reach, Ways } from "./transport";

export interface Begun {
  readonly core: Core;
  readonly ways: Ways;
  /** The relay is reached for while the core is asked: on a thin link each of the two takes a second. */
  readonly reach: Reach;
  readonly capability: Promise<Capability>;
}

export function begin(link: Link): Begun {
  const [core, ways] = [new Core(link.core, link.grant), new Ways(link)];
  const capability = core.capability();
  // Whoever takes it hears of it.
  capability.catch(() => undefined);
  return { core, ways, reach: new Reach(ways), capability };
}
