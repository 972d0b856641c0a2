/** What runs and waits, of both services side by side. */

/** @import { App } from "../../types/app" */
/** @import { Run, ServiceState } from "../../types/state" */

import { button, find, keep, make } from "../dom.js";
import { eta, precision, runStatus, runStep } from "../format.js";
import { isOpen } from "../runs.js";
import { servicesOf } from "../services.js";

/** @param {App} app @param {HTMLElement} panel */
export function mountQueue(app, panel) {
  const { store, runs, connections } = app;
  const blocks = make("div", { class: "blocks" });
  const allow = button({
    label: "Tell me when a picture is finished",
    words: "Tell me when a picture is finished",
    act: async () => {
      const answer = await Notification.requestPermission();
      allow.hidden = true;
      store.say(answer === "granted" ? "The browser will tell you, when you look elsewhere." : "The browser does not allow it.");
    },
  });
  allow.hidden = !("Notification" in window) || Notification.permission !== "default";
  panel.append(blocks, allow);
  store.watch(
    (state) => [state.services, state.runs],
    () => keep(blocks, servicesOf(store.state), ({ name }) => name, block, updateBlock),
  );

  /** @param {ServiceState} service */
  function block({ name }) {
    const ask = async (/** @type {"pause" | "resume" | "clear"} */ what) => {
      try {
        const queue = await connections[name]?.ask((client) => client.changeQueue(what));
        store.setService(name, { queue: queue ?? null });
      } catch (error) {
        store.say(error instanceof Error ? error.message : String(error));
      }
    };
    const pause = button({ label: `Pause ${precision(name)}`, icon: "pause", kind: "bare pause", act: () => void ask(store.state.services[name]?.queue?.paused ? "resume" : "pause") });
    const clear = button({ label: `Cancel everything that waits on ${precision(name)}`, icon: "delete", kind: "bare clear", act: () => void ask("clear") });
    return make(
      "section",
      { class: "block", "data-service": name },
      make("header", {}, make("h3", {}, precision(name)), make("p", { class: "hint state" }), pause, clear),
      make("ul", { class: "runs" }),
    );
  }

  /** @param {HTMLElement} element @param {ServiceState} service */
  function updateBlock(element, { name, queue, phase }) {
    const mine = store.state.runs.filter(({ service }) => service === name);
    const others = Math.max(0, (queue?.queued ?? 0) + (queue?.running.length ?? 0) - mine.filter(({ phase: now, id }) => id !== null && isOpen(now)).length);
    const words = [
      phase === "down" ? "no answer" : "",
      queue?.paused ? "paused" : (queue?.held ?? ""),
      others ? `${others} from elsewhere` : "",
    ].filter(Boolean);
    find(".state", HTMLElement, element).textContent = words.join(" · ") || (mine.some((run) => isOpen(run.phase)) ? "" : "nothing waits");
    const pause = find(".pause", HTMLButtonElement, element);
    const label = `${queue?.paused ? "Go on with" : "Pause"} ${precision(name)}`;
    if (pause.title !== label) {
      pause.title = label;
      pause.setAttribute("aria-label", label);
      pause.querySelector("use")?.setAttribute("href", queue?.paused ? "#icon-run" : "#icon-pause");
    }
    pause.disabled = find(".clear", HTMLButtonElement, element).disabled = phase === "down";
    keep(find(".runs", HTMLElement, element), mine, ({ key }) => key, row, updateRow);
  }

  /** @param {Run} run */
  function row({ key, body }) {
    return make(
      "li",
      {},
      make("img", { class: "run-preview", alt: "", hidden: true }),
      make("p", { class: "run-prompt" }, body.prompt),
      make("p", { class: "run-words hint" }),
      make("progress", { max: 1, value: 0, "aria-label": "Progress" }),
      make(
        "div",
        { class: "run-buttons" },
        button({ label: `Try again: ${body.prompt}`, icon: "redo", kind: "bare again", act: () => runs.retry(key) }),
        button({ label: `Cancel: ${body.prompt}`, icon: "close", kind: "bare cancel", act: () => void runs.cancel(key) }),
        button({ label: `Dismiss: ${body.prompt}`, icon: "close", kind: "bare dismiss", act: () => runs.dismiss(key) }),
      ),
    );
  }

  /** @param {HTMLElement} element @param {Run} run */
  function updateRow(element, run) {
    const open = isOpen(run.phase);
    element.dataset.phase = run.phase;
    find(".run-words", HTMLElement, element).textContent = run.error || [runStatus(run), runStep(run), eta(run)].filter(Boolean).join(" · ");
    const bar = find("progress", HTMLProgressElement, element);
    bar.hidden = run.phase !== "running";
    bar.value = run.progress?.steps ? run.progress.step / run.progress.steps : 0;
    const preview = find(".run-preview", HTMLImageElement, element);
    preview.hidden = !run.preview;
    if (run.preview) {
      preview.src = run.preview;
    }
    find(".cancel", HTMLElement, element).hidden = !open;
    find(".again", HTMLElement, element).hidden = open;
    find(".dismiss", HTMLElement, element).hidden = open;
  }
}
