/** Jobs of this page: where they are in the line, how far they are, what came of them. */

import { ApiError } from "./api.js";
import { find, make } from "./dom.js";

/** @typedef {import("./store.js").Store} Store @typedef {import("./store.js").Run} Run @typedef {import("./api.js").Api} Api */

const POLL_MS = 300;
const POLL_HIDDEN_MS = 2000;
const POLL_DOWN_MS = 1500;

const STAGES = /** @type {Record<string, string>} */ ({
  loading: "Loading the model",
  encoding: "Reading the prompt",
  denoising: "Drawing",
  decoding: "Making pixels",
  saving: "Saving",
});

export class Runs {
  /**
   * @param {Api} api @param {Store} store
   * @param {{finished: () => void, down: (error: ApiError) => void, up: () => void}} tell
   */
  constructor(api, store, tell) {
    this.api = api;
    this.store = store;
    this.tell = tell;
    this.title = document.title;
    this.polling = false;
    store.subscribe((state) => this.show(state.runs));
    this.poll();
  }

  /** @param {any} body */
  async submit(body) {
    const { id } = await this.api.post("/jobs", body);
    this.store.set({ runs: [...this.store.state.runs.filter(isOpen), { id, prompt: body.prompt, job: null }] });
    this.poll();
  }

  async poll() {
    if (this.polling) return;
    this.polling = true;
    let wait = 0;
    while (this.store.state.runs.some(isOpen)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = document.hidden ? POLL_HIDDEN_MS : POLL_MS;
      for (const run of this.store.state.runs.filter(isOpen)) {
        try {
          this.take(run, await this.api.get(`/jobs/${run.id}`));
          this.tell.up();
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          if (error.status === 404) this.take(run, { status: "failed", error: { message: error.message } });
          else {
            this.tell.down(error);
            wait = POLL_DOWN_MS;
          }
        }
      }
    }
    this.polling = false;
  }

  /** @param {Run} run @param {any} job */
  take(run, job) {
    const runs = this.store.state.runs.map((each) => (each.id === run.id ? { ...each, job } : each));
    if (job.status === "succeeded") {
      this.store.set({ runs: runs.filter(({ id }) => id !== run.id), result: job.result });
      this.tell.finished();
    } else {
      this.store.set({ runs });
    }
  }

  /** @param {Run} run */
  async cancelOrDismiss(run) {
    if (isOpen(run)) this.take(run, { ...run.job, ...(await this.api.post(`/jobs/${run.id}/cancel`)) });
    else this.store.set({ runs: this.store.state.runs.filter(({ id }) => id !== run.id) });
  }

  /** @param {Run[]} runs */
  show(runs) {
    find("runs", HTMLOListElement).replaceChildren(...runs.map((run) => this.row(run)));
    const open = runs.filter(isOpen);
    find("live", HTMLElement).textContent = open.length ? inWords(open[0]) : "";
    document.title = open.length ? `${percent(open[0])} · ${this.title}` : this.title;
  }

  /** @param {Run} run */
  row(run) {
    const failed = run.job?.status === "failed";
    const row = make(
      "li",
      {},
      make("span", { className: "prompt" }, run.prompt),
      make("span", { className: failed ? "state failed" : "state" }, inWords(run)),
      make(
        "button",
        { type: "button", onclick: () => this.cancelOrDismiss(run) },
        isOpen(run) ? "Cancel" : "Dismiss",
      ),
    );
    if (isOpen(run)) {
      const { step = 0, steps = 1 } = run.job?.progress ?? {};
      row.append(make("progress", { max: steps, value: step, ariaLabel: "Progress" }));
    }
    return row;
  }
}

/** @param {Run} run */
function isOpen(run) {
  return !run.job || run.job.status === "queued" || run.job.status === "running";
}

/** @param {Run} run */
function percent(run) {
  const progress = run.job?.progress;
  return progress ? `${Math.round((100 * progress.step) / progress.steps)} %` : "waiting";
}

/** @param {Run} run */
function inWords(run) {
  const job = run.job;
  if (!job) return "Sent";
  if (job.status === "queued") return job.position > 1 ? `Waiting, ${job.position - 1} before it` : "Next in line";
  if (job.status === "failed") return `Failed: ${job.error.message}`;
  if (job.status === "cancelled") return "Cancelled";
  const progress = job.progress;
  if (!progress) return "Starting";
  const stage = STAGES[progress.stage] ?? progress.stage;
  return progress.stage === "denoising" ? `${stage}, step ${progress.step} of ${progress.steps}` : stage;
}
