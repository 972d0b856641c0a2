/** Sends requests, follows their jobs until they end, cancels them. */

/** @import { GenerateBody, Job } from "../types/api" */
/** @import { Run } from "../types/state" */
/** @import { Connection } from "./connection.js" */
/** @import { Gallery } from "./gallery.js" */
/** @import { Store } from "./store.js" */

import { Problem, Unreachable } from "./api.js";
import { isReachable } from "./connection.js";
import { Pause } from "./pause.js";
import { newKey } from "./request.js";

const POLL_MS = 300;
const HIDDEN_MS = 2000;
/** Of many open runs the first ones are asked for each time, all of them at every tenth. */
const FIRST_RUNS = 2;
const ALL_EVERY = 10;

export class Runs {
  #connection;
  #store;
  #gallery;
  #pause = new Pause();

  /** @param {Connection} connection @param {Store} store @param {Gallery} gallery */
  constructor(connection, store, gallery) {
    this.#connection = connection;
    this.#store = store;
    this.#gallery = gallery;
  }

  /** Takes a request. It is sent as soon as the service answers. @param {GenerateBody} body */
  start(body) {
    const run = /** @type {Run} */ ({
      key: newKey(),
      id: null,
      body,
      phase: "unsent",
      position: null,
      progress: null,
      error: "",
      isCancelling: false,
    });
    const going = this.#store.state.runs.filter(({ phase }) => phase !== "failed");
    this.#store.set({ runs: [...going, run], fieldErrors: {}, formError: "" });
    this.#pause.wake();
  }

  /** @param {string} key */
  async cancel(key) {
    const run = this.#find(key);
    if (run?.id) {
      this.#patch(key, { isCancelling: true });
      await this.#cancelJob(run.id);
      this.#pause.wake();
    } else if (isReachable(this.#store.state)) {
      this.#patch(key, { isCancelling: true }); // on its way: cancelled once it has an id
    } else {
      this.dismiss(key);
    }
  }

  /** @param {string} key */
  dismiss(key) {
    this.#store.set({ runs: this.#store.state.runs.filter((run) => run.key !== key) });
  }

  /** Follows the open runs for as long as the page lives. */
  async run() {
    document.addEventListener("visibilitychange", () => this.#pause.wake());
    this.#store.watch(
      (state) => [isReachable(state)],
      () => this.#pause.wake(),
    );
    for (let round = 0; ; round++) {
      await this.#showAgain();
      const open = this.#open();
      if (open.length && isReachable(this.#store.state)) {
        await this.#follow(round % ALL_EVERY ? firstOf(open) : open);
        await this.#pause.wait(document.hidden ? HIDDEN_MS : POLL_MS);
      } else {
        await this.#pause.wait();
      }
    }
  }

  /** Puts the job of before a reload back on the stage. */
  async #showAgain() {
    const { shownId, shown } = this.#store.state;
    if (!shownId || !isReachable(this.#store.state)) {
      return;
    }
    try {
      const job = await this.#connection.ask((client) => client.job(shownId));
      this.#store.set({ shownId: null, shown: shown ?? (job.result && { job, index: 0 }) });
    } catch (error) {
      if (!isPassing(error)) {
        this.#store.set({ shownId: null });
      }
    }
  }

  #open() {
    return this.#store.state.runs.filter(({ phase }) => phase !== "failed");
  }

  /** @param {readonly Run[]} runs */
  async #follow(runs) {
    for (const { key } of runs) {
      const run = this.#find(key); // as it is now: it may have been dismissed meanwhile
      if (run && isReachable(this.#store.state)) {
        await (run.id === null ? this.#send(run) : this.#look(run, run.id));
      }
    }
  }

  /** @param {Run} run */
  async #send(run) {
    try {
      const { id, position } = await this.#connection.ask((client) =>
        client.submit(run.body, run.key),
      );
      this.#patch(run.key, { id, position, phase: "queued" });
      if (this.#find(run.key)?.isCancelling) {
        await this.#cancelJob(id);
      }
    } catch (error) {
      if (isPassing(error)) {
        return; // it stays in line and is sent again under the same key
      }
      this.dismiss(run.key);
      this.#refuse(error);
    }
  }

  /** @param {Run} run @param {string} id */
  async #look(run, id) {
    try {
      this.#update(run.key, await this.#connection.ask((client) => client.job(id)));
    } catch (error) {
      if (error instanceof Problem && error.status === 404) {
        this.#fail(run.key, "The service does not know this run any more.");
      }
    }
  }

  /** @param {string} key @param {Job} job */
  #update(key, job) {
    if (job.status === "queued" || job.status === "running") {
      this.#patch(key, { phase: job.status, position: job.position, progress: job.progress });
    } else if (job.status === "failed") {
      this.#fail(key, job.error?.message ?? "The service gave no reason.");
    } else if (job.status === "cancelled") {
      this.dismiss(key);
      this.#store.say("Cancelled.");
    } else {
      this.dismiss(key);
      this.#store.set({ shown: { job, index: 0 }, announcement: "The picture is finished." });
      void this.#gallery.refresh();
    }
  }

  /** @param {string} id */
  async #cancelJob(id) {
    try {
      await this.#connection.ask((client) => client.cancel(id));
    } catch (error) {
      this.#store.say(`Not cancelled: ${messageOf(error)}.`);
    }
  }

  /** @param {unknown} error */
  #refuse(error) {
    const fields = error instanceof Problem ? error.fields : [];
    this.#store.set({
      fieldErrors: Object.fromEntries(fields.map(({ field, message }) => [field, message])),
      formError: messageOf(error),
    });
  }

  /** @param {string} key @param {string} error */
  #fail(key, error) {
    this.#patch(key, { phase: "failed", error, progress: null, position: null });
  }

  /** @param {string} key */
  #find(key) {
    return this.#store.state.runs.find((run) => run.key === key);
  }

  /** @param {string} key @param {Partial<Run>} patch */
  #patch(key, patch) {
    const runs = this.#store.state.runs.map((run) => (run.key === key ? { ...run, ...patch } : run));
    this.#store.set({ runs });
  }
}

/** @param {readonly Run[]} runs */
function firstOf(runs) {
  const sent = runs.filter(({ id }) => id !== null).slice(0, FIRST_RUNS);
  return [...sent, ...runs.filter(({ id }) => id === null)];
}

/** Whether the same request may succeed later. @param {unknown} error */
function isPassing(error) {
  return (
    error instanceof Unreachable ||
    (error instanceof Problem && (error.status === 401 || error.code === "unavailable"))
  );
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
