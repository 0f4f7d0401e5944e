// The page's parts and how they are filled. No rule is made here.

import type { Mark } from "../rules/ledger";
import type { Summary } from "../rules/summary";
import type { Phone, Screen } from "../rules/status";
import { attribute, make, say, show } from "./dom";
import { clock, length, type Text } from "./text";
import { Legend, type Timeline } from "./timeline";

export interface Shown {
  phone: Phone;
  heardAgo: number | null;
  trouble: keyof Text["trouble"] | null;
  screen: Screen | null;
  summary: Summary;
  signed: boolean;
  /** State of what plays. */
  playing: Mark | null;
  at: number | null;
  live: boolean;
  canBeLive: boolean;
  paused: boolean;
  heard: boolean;
  started: boolean;
  audioOnly: boolean;
  pictured: boolean;
  waiting: boolean;
  /** What this browser was given to show it can show. */
  playable: boolean;
  hints: string[];
}

/** How the phone is, for a screen on which it would not be said otherwise. */
export function aside(text: Text, screen: Screen, phone: Phone, heardAgo: number | null): string {
  if (screen !== "nothing_yet" || !(phone === "quiet" || phone === "silent" || phone === "checking")) return "";
  const heard = heardAgo === null || phone === "checking" ? "" : text.heard(length(text, heardAgo * 1000));
  return [text.phone[phone], heard].filter(Boolean).join(". ");
}

/** A screen reader hears a change: what stood there goes first, so that the same words are a change too. */
const CLEARED_MS = 100;

const button = (id: string, label: string, className = ""): HTMLButtonElement => make("button", { id, type: "button", class: className }, label);

export class View {
  readonly video = make("video", { id: "picture", playsinline: "", "aria-hidden": "true", tabindex: "-1" });
  readonly audio = make("audio", { id: "sound" });
  readonly listen: HTMLButtonElement;
  readonly pause: HTMLButtonElement;
  readonly live: HTMLButtonElement;
  readonly audioOnly: HTMLInputElement;
  readonly save: HTMLButtonElement;
  readonly forget: HTMLButtonElement;
  readonly reload: HTMLButtonElement;
  private readonly main: HTMLElement;
  /** What a screen stands instead of; that nobody is called, and forgetting, stay. */
  private readonly parts: HTMLElement[];
  private readonly saving: HTMLElement;
  private readonly forgetting: HTMLElement;
  private readonly screen: HTMLElement;
  private readonly screenTitle = make("h1", { tabindex: "-1" });
  private readonly screenText = make("p");
  private readonly screenPhone = make("p", { id: "screen-phone" });
  private readonly headline = make("h1");
  private readonly heard = make("p", { id: "heard" });
  private readonly because = make("p", { class: "because" });
  private readonly trouble = make("p", { class: "trouble", id: "trouble" });
  private readonly chip = make("span", { class: "chip", id: "playing" });
  private readonly overlay = make("p", { class: "overlay" });
  private readonly time = make("time", { id: "time" });
  private readonly safe = make("strong", { id: "safe" });
  private readonly unsafe = make("span", { id: "unsafe" });
  private readonly safeMeans = make("small");
  private readonly notice = make("p", { class: "notice", id: "notice" });
  private readonly hints = make("p", { class: "hint", id: "hints" });
  private readonly status = make("p", { class: "unseen", role: "status", id: "status" });
  private readonly saved = make("p", { class: "hint", id: "saved" });
  private readonly legend: Legend;
  private noticeUntil = 0;
  private announcing: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly text: Text, private readonly lang: string, private readonly timeline: Timeline) {
    this.video.muted = true;
    this.listen = button("listen", text.listen, "listen");
    this.pause = button("pause", text.pause);
    this.live = button("live", text.toLive, "live");
    this.audioOnly = make("input", { id: "audio-only", type: "checkbox", role: "switch" });
    this.save = button("save", text.save);
    this.forget = button("forget", text.forget);
    this.reload = button("reload", text.reload);
    this.legend = new Legend(text);
    this.saving = make("div", {}, this.save, make("p", { class: "hint" }, text.saveNote), this.saved);
    this.forgetting = make("div", {}, this.forget, make("p", { class: "hint" }, text.forgetHint));
    this.screen = make("section", { class: "screen", id: "screen" }, make("div", { class: "pulse", "aria-hidden": "true" }), this.screenTitle, this.screenText, this.screenPhone, this.reload);
    this.parts = [this.statusCard(), this.stage(), this.safetyCard(), this.saving];
    const [status, stage, safety] = this.parts as [HTMLElement, HTMLElement, HTMLElement];
    this.main = make("main", {}, this.screen, status, stage, safety, this.about());
    // Until it is known what there is to show, nothing flashes.
    this.main.hidden = true;
  }

  /** Puts itself into the page. */
  enter(): void {
    document.documentElement.lang = this.lang;
    document.documentElement.dir = this.text.dir;
    document.title = this.text.title;
    document.body.append(this.main, this.status);
  }

  /** Says a change to those who do not see it. */
  announce(words: string): void {
    clearTimeout(this.announcing);
    say(this.status, "");
    this.announcing = setTimeout(() => say(this.status, words), CLEARED_MS);
  }

  /** Says something that passes. */
  note(words: string, now: number): void {
    say(this.notice, words);
    this.noticeUntil = now + 12_000;
    this.announce(words);
  }

  tellSaved(words: string): void {
    say(this.saved, words);
  }

  draw(shown: Shown, now: number): void {
    const { text } = this;
    show(this.main, true);
    show(this.screen, shown.screen !== null);
    for (const part of this.parts) show(part, shown.screen === null);
    show(this.forgetting, shown.screen !== "no_link" && shown.screen !== "forgotten");
    attribute(document.documentElement, "data-phone", shown.phone);
    attribute(document.documentElement, "data-screen", shown.screen ?? "");
    if (shown.screen) {
      const [title, words] = text.screens[shown.screen];
      say(this.screenTitle, title);
      say(this.screenText, words);
      const phone = aside(text, shown.screen, shown.phone, shown.heardAgo);
      say(this.screenPhone, phone);
      show(this.screenPhone, phone !== "");
      show(this.reload, shown.screen === "no_worker");
      return;
    }
    this.drawStatus(shown);
    this.drawStage(shown);
    this.drawSafety(shown);
    show(this.notice, now < this.noticeUntil);
    say(this.hints, shown.hints.join(" "));
    show(this.hints, shown.hints.length > 0);
    this.timeline.draw(shown.at, shown.audioOnly, shown.live);
  }

  private drawStatus({ phone, heardAgo, trouble }: Shown): void {
    const { text } = this;
    say(this.headline, text.phone[phone]);
    const counts = heardAgo !== null && (phone === "quiet" || phone === "silent" || phone === "cut" || phone === "checking" || (phone === "ended" && heardAgo >= 5));
    say(this.heard, counts ? text.heard(length(text, heardAgo * 1000)) : phone === "live" ? text.heardNow : "");
    show(this.heard, this.heard.textContent !== "");
    say(this.because, text.because[phone]);
    show(this.because, text.because[phone] !== "");
    say(this.trouble, trouble ? text.trouble[trouble] : "");
    show(this.trouble, trouble !== null);
    attribute(this.trouble, "data-trouble", trouble ?? "");
  }

  private drawStage(shown: Shown): void {
    const { text } = this;
    show(this.chip, shown.playing !== null);
    if (shown.playing) {
      say(this.chip, text.marks[shown.playing]);
      attribute(this.chip, "data-state", shown.playing);
    }
    const overlay = !shown.playable && !shown.pictured ? text.cantPlay : shown.audioOnly ? text.soundOnlyOn : shown.pictured ? "" : text.noPicture;
    say(this.overlay, overlay);
    show(this.overlay, overlay !== "");
    attribute(this.video, "data-shown", String(shown.pictured));
    say(this.time, shown.at === null ? "" : clock(this.lang, shown.at));
    say(this.listen, shown.heard ? text.mute : shown.started ? text.unmute : text.listen);
    this.listen.classList.toggle("on", shown.heard);
    say(this.pause, shown.paused ? text.play : text.pause);
    const isLive = shown.live && !shown.paused && shown.canBeLive;
    say(this.live, !shown.canBeLive ? text.fromStart : isLive ? text.isLive : text.toLive);
    attribute(this.live, "aria-pressed", String(isLive));
    this.live.classList.toggle("start", !shown.canBeLive);
    this.audioOnly.checked = shown.audioOnly;
  }

  private drawSafety({ summary, signed, at }: Shown): void {
    const { text } = this;
    const time = summary.safeUpTo === undefined ? null : clock(this.lang, summary.safeUpTo);
    const words = (time: string): string => (summary.holesMs < 500 ? text.safeUpTo(time) : text.safeBut(time, length(text, summary.holesMs)));
    say(this.safe, time === null ? text.nothingSafe : words(time));
    attribute(this.safe, "data-safe", String(summary.safeUpTo !== undefined));
    const not = [
      summary.refusedMs > 0 ? text.refused(length(text, summary.refusedMs)) : "",
      summary.unsafeMs > 0 ? text.unsafe(length(text, summary.unsafeMs)) : "",
    ].filter(Boolean).join(". ");
    say(this.unsafe, not || (summary.allSafe && at !== null ? text.allSafe : ""));
    attribute(this.unsafe, "data-unsafe", String(not !== ""));
    say(this.safeMeans, signed ? text.safeMeansSigned : text.safeMeans);
    this.legend.draw(summary.counts);
  }

  private statusCard(): HTMLElement {
    const dot = make("span", { class: "dot", "aria-hidden": "true" });
    return make("header", { class: "card state" }, dot, make("div", {}, this.headline, this.heard, this.because), this.trouble);
  }

  private stage(): HTMLElement {
    const frame = make("div", { class: "frame" }, this.video, this.overlay, this.chip, this.time);
    const only = make("label", { class: "switch" }, this.audioOnly, make("span", { class: "knob", "aria-hidden": "true" }),
      make("span", {}, this.text.audioOnly, " ", make("small", {}, this.text.audioOnlyHint)));
    const controls = make("div", { class: "controls" }, this.listen, this.pause, this.live, only);
    return make("section", { class: "stage" }, frame, this.timeline.element, controls, this.notice, this.hints, this.audio);
  }

  private safetyCard(): HTMLElement {
    return make("section", { class: "card safety" }, make("p", {}, this.safe, this.unsafe), this.legend.element, this.safeMeans);
  }

  private about(): HTMLElement {
    const { text } = this;
    return make("footer", {},
      make("p", { class: "nobody" }, text.nobodyCalled),
      make("div", { class: "tools" }, this.saving, this.forgetting));
  }
}
