/** The run that draws, with its progress, and the ones that wait behind it. */

/** @import { Run, Shown } from "../../types/state" */
/** @import { Runs } from "../runs.js" */
/** @import { Store } from "../store.js" */

import { find, keep, make } from "../dom.js";
import { duration, runStatus, runStep } from "../format.js";

/**
 * The one to show: what draws, else what is next, else what failed.
 * @param {readonly Run[]} runs
 * @returns {Run | undefined}
 */
export function currentRun(runs) {
  return (
    runs.find(({ phase }) => phase === "running") ??
    runs.find(({ phase }) => phase !== "failed") ??
    runs.at(-1)
  );
}

/** @param {Store} store @param {Runs} runs */
export function mountRun(store, runs) {
  const bar = find("#run", HTMLElement);
  const stage = find("#run-stage", HTMLElement);
  const step = find("#run-step", HTMLElement);
  const detail = find("#run-detail", HTMLElement);
  const progress = find("#run-progress", HTMLProgressElement);
  const cancel = find("#run-cancel", HTMLButtonElement);
  const again = find("#run-again", HTMLButtonElement);
  const dismiss = find("#run-dismiss", HTMLButtonElement);

  const current = () => currentRun(store.state.runs);
  cancel.addEventListener("click", () => withRun((run) => void runs.cancel(run.key)));
  dismiss.addEventListener("click", () => withRun((run) => runs.dismiss(run.key)));
  again.addEventListener("click", () => withRun((run) => runs.start(run.body)));
  /** @param {(run: Run) => void} act */
  function withRun(act) {
    const run = current();
    if (run) {
      act(run);
    }
  }

  store.watch(
    ({ runs, shown, service }) => [runs, shown, service.phase],
    (all, shown, phase) => {
      const run = currentRun(all);
      bar.dataset.phase = run?.phase ?? "idle";
      cancel.hidden = !run || run.phase === "failed";
      cancel.disabled = run?.isCancelling ?? false;
      again.hidden = dismiss.hidden = run?.phase !== "failed";
      if (!run) {
        [stage.textContent, step.textContent, detail.textContent] = idleWords(shown);
        progress.value = 0;
        return;
      }
      stage.textContent =
        run.phase === "unsent" && phase === "down" ? "Waiting for the service" : runStatus(run);
      step.textContent = runStep(run);
      detail.textContent = run.error || run.body.prompt;
      showProgress(progress, run);
    },
  );
}

/** @param {Shown | null} shown @returns {[string, string, string]} */
function idleWords(shown) {
  const result = shown?.job.result;
  if (!shown || !result) {
    return ["Ready", "", "Enter draws, Shift+Enter starts a new line"];
  }
  return ["Finished", `in ${duration(result.generation_time_ms)}`, shown.job.request.prompt];
}

/** Without a value the bar shows that something goes on, of unknown length. @param {HTMLProgressElement} bar @param {Run} run */
function showProgress(bar, { phase, progress }) {
  if (phase === "running" && !progress?.step) {
    bar.removeAttribute("value");
  } else {
    bar.value = phase === "running" && progress?.steps ? progress.step / progress.steps : 0;
  }
}

/** @param {Store} store @param {Runs} runs */
export function mountWaiting(store, runs) {
  const list = find("#waiting", HTMLElement);
  store.watch(
    ({ runs }) => [runs],
    (all) => {
      const current = currentRun(all);
      const others = all.filter((run) => run !== current && run.phase !== "failed");
      list.hidden = others.length === 0;
      keep(list, others, ({ key }) => key, create, update);
    },
  );

  /** @param {Run} run */
  function create(run) {
    const cancel = make("button", { class: "link", type: "button" }, "Cancel");
    cancel.setAttribute("aria-label", `Cancel: ${run.body.prompt}`);
    cancel.addEventListener("click", () => void runs.cancel(run.key));
    return make(
      "li",
      {},
      make("span", { class: "waiting-prompt" }, run.body.prompt),
      make("span", { class: "waiting-status" }),
      cancel,
    );
  }

  /** @param {HTMLElement} item @param {Run} run */
  function update(item, run) {
    find(".waiting-status", HTMLElement, item).textContent = runStatus(run);
    find("button", HTMLButtonElement, item).disabled = run.isCancelling;
  }
}
