/** Short messages, seen for a moment and read out; and the tab's title. */

/** @import { Run } from "../../types/state" */
/** @import { Store } from "../store.js" */

import { find } from "../dom.js";
import { runStage } from "../format.js";
import { isOpen } from "../runs.js";

/** Long ones stay longer. */
const SHOWN_MS = 3500;
const PER_CHARACTER_MS = 40;
const NAME = "FLUX";

/** @param {Store} store */
export function mountMessage(store) {
  const line = find("#message", HTMLElement);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  store.watch(
    ({ message }) => [message],
    (message) => {
      clearTimeout(timer);
      line.textContent = message?.text ?? "";
      timer = setTimeout(() => (line.textContent = ""), SHOWN_MS + PER_CHARACTER_MS * line.textContent.length);
    },
  );
  const announcement = find("#announcement", HTMLElement);
  store.watch(
    (state) => [state.announcement],
    (text) => {
      announcement.textContent = text;
    },
  );
  // Stages are read out, single steps are not.
  store.watch(
    ({ runs }) => {
      const run = currentRun(runs);
      return [run?.phase === "running" ? runStage(run) : ""];
    },
    (stage) => {
      if (stage) {
        store.set({ announcement: `${stage}.` });
      }
    },
  );
}

/** @param {Store} store */
export function mountTitle(store) {
  store.watch(
    ({ runs }) => [runs],
    (runs) => {
      const run = currentRun(runs);
      const progress = run?.progress;
      if (!run) {
        document.title = NAME;
      } else if (run.phase === "running" && progress && progress.steps) {
        document.title = `${Math.round((100 * progress.step) / progress.steps)} % · ${NAME}`;
      } else {
        document.title = `Waiting · ${NAME}`;
      }
    },
  );
}

/** What draws, else what is next. @param {readonly Run[]} runs */
function currentRun(runs) {
  return runs.find(({ phase }) => phase === "running") ?? runs.find(({ phase }) => isOpen(phase));
}
