// The timeline: one mark for each chunk and lane, in step with time. It is a slider too.

import type { Lane } from "../rules/assembly";
import { Axis } from "../rules/axis";
import { type Chunk, keyOf, type Ledger, markOf } from "../rules/ledger";
import { attribute, make, say, show } from "./dom";
import { clock, type Text } from "./text";

/** Pixels for each second. */
const SCALE = 9;
/** Marks drawn of each lane; older ones are in the saved file's list. */
const MOST = 450;
const LANES: Lane[] = ["video", "audio"];

export interface Aims {
  seek(at: number): void;
  live(): void;
  /** A mark that is not here was tapped. */
  fetch(chunk: Chunk): void;
}

/** A mark, and what of it was drawn: most do not change when another does. */
interface Drawn {
  element: HTMLElement;
  chunk: Chunk;
  place: string;
  says: string;
}

export class Timeline {
  readonly element: HTMLElement;
  private readonly scroller: HTMLElement;
  private readonly track: HTMLElement;
  private readonly head: HTMLElement;
  private readonly rows: Record<Lane, HTMLElement>;
  private readonly off: Record<Lane, HTMLElement>;
  private readonly marks = new Map<string, Drawn>();
  private axis = new Axis([]);
  private drawn = -1;
  private spokenAt = "";
  private following = true;

  constructor(private readonly text: Text, private readonly lang: string, private readonly ledger: Ledger, private readonly aims: Aims) {
    this.head = make("div", { class: "head" });
    this.rows = { video: make("div", { class: "row" }), audio: make("div", { class: "row" }) };
    this.off = { video: make("small", {}, ` ${text.laneOff}`), audio: make("small", {}) };
    this.track = make("div", { class: "track", role: "slider", tabindex: "0", "aria-label": text.timeline, "aria-describedby": "timeline-hint", id: "timeline" },
      this.rows.video, this.rows.audio, this.head);
    this.scroller = make("div", { class: "scroller", dir: "ltr" }, this.track);
    const labels = make("div", { class: "labels", "aria-hidden": "true" }, ...LANES.map((lane) => make("span", {}, text.lanes[lane], this.off[lane])));
    this.element = make("section", { class: "timeline" }, labels, this.scroller, make("p", { class: "unseen", id: "timeline-hint" }, text.timelineHint));
    this.off.video.hidden = this.off.audio.hidden = true;
    this.listen();
  }

  draw(at: number | null, audioOnly: boolean, live: boolean): void {
    if (this.drawn !== this.ledger.version) this.layOut();
    else this.fill();
    this.ledger.moving.clear();
    show(this.off.video, audioOnly);
    this.rows.video.classList.toggle("off", audioOnly);
    show(this.head, at !== null);
    if (at === null) return this.rest();
    const x = (this.axis.place(at) * SCALE) / 1000;
    this.head.style.transform = `translateX(${x.toFixed(1)}px)`;
    if (live || this.following) this.follow(x, live);
    this.speak(at);
  }

  private layOut(): void {
    this.drawn = this.ledger.version;
    const shown = LANES.flatMap((lane) => this.ledger.of(lane).slice(-MOST));
    this.axis = new Axis(shown);
    this.track.style.width = `${((this.axis.length * SCALE) / 1000 + 24).toFixed(0)}px`;
    const keys = new Set<string>();
    for (const chunk of shown) {
      const key = keyOf(chunk.stream, chunk.index);
      keys.add(key);
      this.mark(key, chunk);
    }
    this.marks.forEach((element, key) => {
      if (keys.has(key)) return;
      element.element.remove();
      this.marks.delete(key);
    });
  }

  /** Draws how far what arrives is. */
  private fill(): void {
    for (const chunk of this.ledger.moving) share(this.marks.get(keyOf(chunk.stream, chunk.index))?.element, chunk);
  }

  private mark(key: string, chunk: Chunk): void {
    let drawn = this.marks.get(key);
    if (!drawn) {
      const element = make("i", { class: "mark", "data-lane": chunk.lane, "data-index": String(chunk.index) });
      drawn = { element, chunk, place: "", says: "" };
      this.marks.set(key, drawn);
      this.rows[chunk.lane].append(element);
    }
    const { element } = drawn;
    drawn.chunk = chunk;
    const from = (this.axis.place(chunk.started) * SCALE) / 1000;
    const width = Math.max(8, ((chunk.ended - chunk.started) * SCALE) / 1000 - 3);
    const place = `${from.toFixed(1)} ${width.toFixed(1)}`;
    if (drawn.place !== place) {
      element.style.transform = `translateX(${from.toFixed(1)}px)`;
      element.style.width = `${width.toFixed(1)}px`;
      drawn.place = place;
    }
    const state = markOf(chunk);
    const says = `${state} ${chunk.here} ${chunk.started}`;
    if (drawn.says !== says) {
      attribute(element, "data-state", state);
      attribute(element, "data-here", String(chunk.here));
      attribute(element, "title", this.position(chunk.started, chunk));
      drawn.says = says;
    }
    share(element, chunk);
  }

  private position(at: number, chunk: Chunk): string {
    const state = chunk.proof && !chunk.here ? this.text.onlySafe : this.text.marks[markOf(chunk)];
    return this.text.position(clock(this.lang, at), state);
  }

  /** What a slider says before anything plays. */
  private rest(): void {
    const { track, axis } = this;
    attribute(track, "aria-valuemin", "0");
    attribute(track, "aria-valuemax", String(Math.round(axis.length / 1000)));
    attribute(track, "aria-valuenow", "0");
    if (axis.length) attribute(track, "aria-valuetext", clock(this.lang, axis.start));
  }

  private speak(at: number): void {
    const { track, axis } = this;
    const now = String(Math.round(axis.place(at) / 1000));
    const said = `${now} ${this.drawn}`;
    if (this.spokenAt === said) return;
    attribute(track, "aria-valuemin", "0");
    attribute(track, "aria-valuemax", String(Math.round(axis.length / 1000)));
    attribute(track, "aria-valuenow", now);
    this.spokenAt = said;
    // Read out while it has the focus: a text that changes every second would never end.
    if (document.activeElement === track && track.getAttribute("aria-valuetext")) return;
    this.speakNow(at);
  }

  private speakNow(at: number): void {
    const chunk = this.ledger.all().filter((one) => one.started <= at && at < one.ended).pop();
    attribute(this.track, "aria-valuetext", chunk ? this.position(at, chunk) : clock(this.lang, at));
  }

  private follow(x: number, live: boolean): void {
    const { scroller, track } = this;
    const room = scroller.clientWidth;
    const want = live ? track.scrollWidth - room : x - room / 2;
    if (Math.abs(scroller.scrollLeft - want) > (live ? 1 : room / 3)) scroller.scrollLeft = Math.max(0, want);
  }

  private listen(): void {
    const { track, scroller } = this;
    track.addEventListener("click", (event) => {
      const x = event.clientX - track.getBoundingClientRect().left;
      const chunk = [...this.marks.values()].find(({ element }) => element === event.target)?.chunk;
      if (chunk && !chunk.here) this.aims.fetch(chunk);
      this.aims.seek(chunk ? chunk.started + 1 : this.axis.time((x * 1000) / SCALE));
      this.following = true;
    });
    scroller.addEventListener("pointerdown", () => (this.following = false));
    scroller.addEventListener("wheel", () => (this.following = false), { passive: true });
    track.addEventListener("keydown", (event) => this.key(event));
  }

  private key(event: KeyboardEvent): void {
    const now = this.axis.time(Number(this.track.getAttribute("aria-valuenow")) * 1000);
    const starts = [...new Set(this.ledger.all().map((chunk) => chunk.started))].sort((a, b) => a - b);
    const before = starts.filter((start) => start < now - 700).pop();
    const after = starts.find((start) => start > now + 300);
    const to: Record<string, number | undefined> = {
      ArrowLeft: before, ArrowDown: before, ArrowRight: after, ArrowUp: after, PageUp: now + 10_000, PageDown: now - 10_000,
      Home: this.axis.start,
    };
    if (event.key === "End") this.aims.live();
    else if (!(event.key in to)) return;
    event.preventDefault();
    const at = to[event.key];
    if (at === undefined) return;
    this.following = true;
    this.aims.seek(Math.min(Math.max(at, this.axis.start), this.axis.end - 1) + 1);
    this.speakNow(at);
  }
}

function share(element: HTMLElement | undefined, chunk: Chunk): void {
  const value = markOf(chunk) === "receiving" ? chunk.progress.toFixed(2) : "1";
  if (element && element.style.getPropertyValue("--share") !== value) element.style.setProperty("--share", value);
}

/** The legend: what the marks mean, and how many there are of each. */
export class Legend {
  readonly element: HTMLElement;
  private readonly counts: [keyof Text["marks"], HTMLElement][] = [];

  constructor(text: Text) {
    this.element = make("ul", { class: "legend" });
    for (const mark of ["confirmed", "unconfirmed", "receiving", "missing", "rejected"] as const) {
      const count = make("b", {}, "0");
      this.counts.push([mark, count]);
      const sign = make("i", { class: "mark", "data-state": mark, "data-here": "true", "aria-hidden": "true" });
      this.element.append(make("li", { title: text.marksMean[mark] }, sign, make("span", {}, text.marks[mark]), count));
    }
  }

  draw(counts: Record<keyof Text["marks"], number>): void {
    for (const [mark, element] of this.counts) say(element, String(counts[mark]));
  }
}
