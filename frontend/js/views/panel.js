/** The panel at the side: one of its parts at a time. */

/** @import { App } from "../../types/app" */
/** @import { Panel } from "../../types/state" */

import { button, find, make } from "../dom.js";
import { whenRead } from "../lazy.js";
import { PANELS } from "./topbar.js";

/** @param {App} app @param {Record<Panel, () => Promise<(body: HTMLElement) => void>>} parts what fills each when it is first opened */
export function mountPanel({ store }, parts) {
  const panel = find("#panel", HTMLElement);
  /** Those that were not opened yet. @type {Map<Panel, HTMLElement>} */
  const bodies = new Map();
  for (const { panel: name, words } of PANELS) {
    const body = make("div", { class: "panel-body" });
    const head = make("header", { class: "panel-head" }, make("h2", {}, words), button({ label: `Close ${words}`, icon: "close", kind: "bare", act: () => store.set({ panel: null }) }));
    panel.append(make("section", { class: "part", id: `panel-${name}`, "aria-label": words, hidden: true }, head, body));
    bodies.set(name, body);
  }
  store.watch(
    (state) => [state.panel],
    (now) => {
      panel.hidden = now === null;
      const body = now && bodies.get(now);
      if (body) {
        bodies.delete(now);
        whenRead(store, parts[now](), (fill) => fill(body));
      }
      for (const part of panel.children) {
        part.toggleAttribute("hidden", part.id !== `panel-${now}`);
      }
    },
  );
}
