/** What a reload must not lose, in the tab's sessionStorage: it ends with the tab. */

/** @import { Draft, Run, State } from "../types/state" */
/** @import { Store } from "./store.js" */

import { EMPTY_DRAFT, initialState } from "./store.js";

export class Session {
  #name;

  /** @param {string} address the service's; what belongs to one service is not shown to another */
  constructor(address) {
    this.#name = `flux ${address}`;
  }

  /** The state to start with. @returns {State} */
  restore() {
    const saved = this.#read();
    return {
      ...initialState(),
      key: text(saved.key) ?? "",
      draft: draftFrom(saved.draft),
      runs: Array.isArray(saved.runs) ? saved.runs.flatMap(runFrom) : [],
      shownId: text(saved.shown),
    };
  }

  /** @param {Store} store */
  keep(store) {
    store.watch(
      ({ key, draft, runs, shown, shownId }) => [key, draft, runs, shown, shownId],
      (key, draft, runs, shown, shownId) => {
        this.#write({
          key,
          draft,
          runs: runs
            .filter((run) => run.phase !== "failed")
            .map(({ key, id, body }) => ({ key, id, body })),
          shown: shown?.job.id ?? shownId,
        });
      },
    );
  }

  /** @returns {Record<string, unknown>} */
  #read() {
    try {
      return asObject(JSON.parse(sessionStorage.getItem(this.#name) ?? "{}"));
    } catch {
      return {}; // storage is off, or holds what another program wrote
    }
  }

  /** @param {unknown} values */
  #write(values) {
    try {
      sessionStorage.setItem(this.#name, JSON.stringify(values));
    } catch {
      // Storage is off or full: a reload starts afresh.
    }
  }
}

/** @param {unknown} saved @returns {Draft} */
function draftFrom(saved) {
  const values = asObject(saved);
  const known = Object.keys(EMPTY_DRAFT).filter((name) => typeof values[name] === "string");
  return { ...EMPTY_DRAFT, ...Object.fromEntries(known.map((name) => [name, values[name]])) };
}

/** @param {unknown} saved @returns {Run[]} */
function runFrom(saved) {
  const { key, id, body } = asObject(saved);
  const prompt = text(asObject(body).prompt);
  if (typeof key !== "string" || prompt === null) {
    return [];
  }
  return [
    {
      key,
      id: text(id),
      body: { ...asObject(body), prompt },
      phase: text(id) === null ? "unsent" : "queued",
      position: null,
      progress: null,
      error: "",
      isCancelling: false,
    },
  ];
}

/** @param {unknown} value @returns {Record<string, unknown>} */
function asObject(value) {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

/** @param {unknown} value */
function text(value) {
  return typeof value === "string" ? value : null;
}
