/** The bar at the top: the workflow, the view, the button that runs, the services, the panels. */

/** @import { App } from "../../types/app" */
/** @import { Box } from "../../types/graph" */
/** @import { Panel, ServiceState } from "../../types/state" */

import { SERVICE_NAMES } from "../config.js";
import { button, find, icon, keep, make } from "../dom.js";
import { precision } from "../format.js";
import * as commands from "../graph/commands.js";
import { mainSampler } from "../graph/plan.js";
import { whenRead } from "../lazy.js";
import { newSeed } from "../random.js";
import { isOpen } from "../runs.js";
import { servicesOf } from "../services.js";

/** @type {readonly {panel: Panel, words: string, icon: string}[]} */
export const PANELS = [
  { panel: "gallery", words: "Gallery", icon: "gallery" },
  { panel: "loras", words: "LoRAs", icon: "loras" },
  { panel: "queue", words: "Queue", icon: "queue" },
  { panel: "machine", words: "Machine", icon: "machine" },
  { panel: "workflows", words: "Workflows", icon: "workflows" },
];

/** @typedef {{fit: () => void, boxOf: (id: string) => Box}} Canvas */

/** @param {App} app @param {Canvas} canvas */
export function mountTopbar(app, canvas) {
  const { store, runs } = app;
  const run = find("#run", HTMLButtonElement);
  const stop = find("#stop", HTMLButtonElement);
  run.addEventListener("click", () => void runs.start());
  stop.addEventListener("click", () => runs.cancelAll());
  find("#compare", HTMLButtonElement).addEventListener("click", () => whenRead(store, import("../graph/compared.js"), ({ withTwin }) => compare(app, canvas, withTwin)));
  for (const radio of document.querySelectorAll("[name=view]")) {
    radio.addEventListener("change", () => store.set({ view: radio.getAttribute("value") === "form" ? "form" : "canvas" }));
  }
  store.watch(
    ({ view }) => [view],
    (view) => {
      find(`[name=view][value=${view}]`, HTMLInputElement).checked = true;
      document.body.dataset.view = view;
    },
  );
  store.watch(
    ({ runs }) => [runs.filter(({ phase }) => isOpen(phase)).length],
    (open) => {
      stop.hidden = open === 0;
      find("#run-count", HTMLElement).textContent = open ? String(open) : "";
    },
  );
  store.watch(
    ({ workflow }) => [workflow],
    (name) => {
      find("#workflow-name", HTMLElement).textContent = name || "Untitled";
    },
  );

  const bar = find("#panels", HTMLElement);
  for (const { panel, words, icon: name } of PANELS) {
    const element = make("button", { type: "button", class: "tab", "data-panel": panel, "aria-label": words, title: words }, icon(name), make("span", { class: "tab-words" }, words));
    element.addEventListener("click", () => togglePanel(app, panel));
    bar.append(element);
  }
  find("#workflow", HTMLButtonElement).addEventListener("click", () => togglePanel(app, "workflows"));
  store.watch(
    ({ panel }) => [panel],
    (panel) => {
      document.body.dataset.panel = panel ?? "";
      for (const tab of bar.children) {
        tab.setAttribute("aria-pressed", String(tab.getAttribute("data-panel") === panel));
      }
    },
  );

  const pills = find("#services", HTMLElement);
  store.watch(
    (state) => [state.services],
    () =>
      keep(pills, servicesOf(store.state), ({ name }) => name, pill, (element, service) => {
        element.dataset.phase = service.phase;
        const words = `${precision(service.name)}: ${describe(service)}`;
        element.title = words;
        element.setAttribute("aria-label", words);
      }),
  );

  /** @param {ServiceState} service */
  function pill({ name }) {
    const element = make("button", { type: "button", class: "pill", "data-service": name }, make("span", { class: "dot" }), precision(name));
    element.addEventListener("click", () => togglePanel(app, "machine"));
    return element;
  }
}

/** @param {App} app @param {Panel} panel */
export function togglePanel({ store }, panel) {
  store.set({ panel: store.state.panel === panel ? null : panel });
}

/** The same prompt and seed at both precisions, side by side. @param {App} app @param {Canvas} canvas @param {typeof import("../graph/compared.js").withTwin} withTwin */
function compare({ store, editor, runs, connections }, canvas, withTwin) {
  const missing = SERVICE_NAMES.find((name) => !connections[name]);
  if (missing) {
    store.say(`This page knows no ${missing.toUpperCase()} service to compare with.`);
    return;
  }
  const sampler = mainSampler(editor.graph, store.state.selection[0] ?? null);
  const last = sampler && store.state.shown[sampler.id];
  const twin = sampler && withTwin(editor.graph, sampler.id, last?.job.result?.images[last.index]?.seed ?? newSeed(), canvas.boxOf);
  if (!twin) {
    store.say("There is no Sampler with a Model to compare.");
    return;
  }
  editor.do(commands.replaceAll(editor.graph, twin.graph, "compare the services"));
  editor.select([]);
  requestAnimationFrame(canvas.fit);
  runs.start(twin.samplers);
}

/** @param {ServiceState} service */
export function describe({ phase, reason, info, address }) {
  const names = info?.devices.map(({ name }) => name) ?? [];
  const machine = names.length > 1 ? `${names.length} × ${names[0]}` : (names[0] ?? "");
  return {
    connecting: "connecting",
    ready: ["ready", machine].filter(Boolean).join(" on "),
    waiting: `cannot draw now: ${reason}`,
    down: `no answer at ${address}`,
    locked: "needs a key",
  }[phase];
}

/** Buttons that are in the document already. @param {App} app @param {() => void} onHelp */
export function mountCorner({ store }, onHelp) {
  find("#corner", HTMLElement).append(
    button({
      label: "Dark or light",
      icon: "theme",
      kind: "bare",
      act: () => {
        const isLight = getComputedStyle(document.documentElement).colorScheme === "light";
        document.documentElement.dataset.theme = isLight ? "dark" : "light";
        store.set({ announcement: isLight ? "Dark" : "Light" });
      },
    }),
    button({ label: "Help and keys", icon: "help", kind: "bare", act: onHelp }),
  );
}
