/** All state of the page that changes; whoever shows it subscribes. */

/**
 * @typedef {{id: string, prompt: string, job: any | null}} Run a job of this page; `job` as the service last told it
 * @typedef {{runs: Run[], result: any | null, notice: string, images: any[], allShown: boolean, viewed: number}} State
 */

const RUNS_STORAGE = "flux-runs";

export class Store {
  constructor() {
    /** @type {State} */
    this.state = { runs: savedRuns(), result: null, notice: "", images: [], allShown: true, viewed: -1 };
    /** @type {Set<(state: State) => void>} */
    this.listeners = new Set();
  }

  /** @param {(state: State) => void} listener */
  subscribe(listener) {
    this.listeners.add(listener);
    listener(this.state);
  }

  /** @param {Partial<State>} changes */
  set(changes) {
    this.state = { ...this.state, ...changes };
    if (changes.runs) {
      // A reload loses nothing: the jobs are the service's, their ids are kept for this tab.
      sessionStorage.setItem(RUNS_STORAGE, JSON.stringify(changes.runs.map(({ id, prompt }) => ({ id, prompt }))));
    }
    for (const listener of this.listeners) listener(this.state);
  }
}

/** @returns {Run[]} */
function savedRuns() {
  try {
    const saved = JSON.parse(sessionStorage.getItem(RUNS_STORAGE) ?? "[]");
    return saved.map((/** @type {{id: string, prompt: string}} */ run) => ({ ...run, job: null }));
  } catch {
    return [];
  }
}
