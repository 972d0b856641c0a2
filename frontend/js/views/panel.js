/** The panel at the side: one of its parts at a time. */

/** @import { App } from "../../types/app" */

import { button, find, make } from "../dom.js";
import { PANELS } from "./topbar.js";

/** @param {App} app @param {Record<string, (body: HTMLElement) => void>} parts what fills each */
export function mountPanel({ store }, parts) {
  const panel = find("#panel", HTMLElement);
  for (const { panel: name, words } of PANELS) {
    const body = make("div", { class: "panel-body" });
    const head = make("header", { class: "panel-head" }, make("h2", {}, words), button({ label: `Close ${words}`, icon: "close", kind: "bare", act: () => store.set({ panel: null }) }));
    panel.append(make("section", { class: "part", id: `panel-${name}`, "aria-label": words, hidden: true }, head, body));
    parts[name]?.(body);
  }
  store.watch(
    (state) => [state.panel],
    (now) => {
      panel.hidden = now === null;
      for (const part of panel.children) {
        part.toggleAttribute("hidden", part.id !== `panel-${now}`);
      }
    },
  );
}
