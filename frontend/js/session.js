/** What a reload must not lose, in the tab's sessionStorage: it ends with the tab. */

/** @import { Graph } from "../types/graph" */
/** @import { Run, ServiceName, State } from "../types/state" */
/** @import { Store } from "./store.js" */

import { SERVICE_NAMES } from "./config.js";
import { newDocument } from "./graph/history.js";
import { parse, serialise } from "./graph/workflow.js";
import { FRESH, isOpen } from "./runs.js";

const PAGE = "flux page";
const KEYS = "flux keys";

/** The keys that were typed in this tab, by address. @returns {Record<string, string>} */
export function readKeys() {
  const saved = read(KEYS);
  return Object.fromEntries(Object.entries(saved).flatMap(([address, key]) => (typeof key === "string" ? [[address, key]] : [])));
}

/** @returns {Partial<State> | null} null when there is nothing to go on with */
export function restore() {
  const saved = read(PAGE);
  const graph = graphFrom(saved.workflow);
  if (!graph) {
    return null;
  }
  return {
    document: newDocument(graph.graph),
    workflow: graph.name,
    ...(saved.view === "canvas" || saved.view === "form" ? { view: saved.view } : {}),
    runs: Array.isArray(saved.runs) ? saved.runs.flatMap(runFrom) : [],
    toShow: Object.fromEntries(Object.entries(asObject(saved.shown)).flatMap(shownFrom)),
  };
}

/** @param {Store} store */
export function keepSession(store) {
  store.watch(
    ({ document, workflow, view, runs, shown, toShow }) => [document.graph, workflow, view, runs, shown, toShow],
    (graph, workflow, view, runs, shown, toShow) => {
      const finished = Object.entries(shown).map(([sampler, { service, job }]) => [sampler, { service, id: job.id }]);
      write(PAGE, {
        workflow: serialise(graph, workflow),
        view,
        runs: runs.filter(({ phase }) => isOpen(phase)).map(({ key, id, service, sampler, body, parts }) => ({ key, id, service, sampler, body, parts })),
        shown: { ...toShow, ...Object.fromEntries(finished) },
      });
    },
  );
  store.watch(
    ({ services }) => [services],
    (services) => {
      const keys = Object.values(services).flatMap(({ address, key }) => (key ? [[address, key]] : []));
      write(KEYS, Object.fromEntries(keys));
    },
  );
}

/** @param {unknown} saved @returns {{graph: Graph, name: string} | null} */
function graphFrom(saved) {
  try {
    return parse(saved);
  } catch {
    return null; // nothing was saved, or another version of the page saved it
  }
}

/** @param {unknown} saved @returns {Run[]} */
function runFrom(saved) {
  const { key, id, service, sampler, body, parts } = asObject(saved);
  const prompt = asObject(body).prompt;
  if (typeof key !== "string" || typeof prompt !== "string" || typeof sampler !== "string" || !isService(service)) {
    return [];
  }
  return [
    {
      ...FRESH,
      key,
      service,
      sampler,
      id: typeof id === "string" ? id : null,
      phase: typeof id === "string" ? "queued" : "unsent",
      body: { ...asObject(body), prompt },
      parts: Array.isArray(parts) ? parts : [],
    },
  ];
}

/** @param {[string, unknown]} entry */
function shownFrom([sampler, saved]) {
  const { service, id } = asObject(saved);
  return typeof id === "string" && isService(service) ? [[sampler, { service, id }]] : [];
}

/** @param {unknown} name @returns {name is ServiceName} */
function isService(name) {
  return SERVICE_NAMES.some((known) => known === name);
}

/** @param {string} name @returns {Record<string, unknown>} */
function read(name) {
  try {
    return asObject(JSON.parse(sessionStorage.getItem(name) ?? "{}"));
  } catch {
    return {}; // storage is off, or holds what another program wrote
  }
}

/** @param {string} name @param {unknown} values */
function write(name, values) {
  try {
    sessionStorage.setItem(name, JSON.stringify(values));
  } catch {
    // Storage is off or full: a reload starts afresh.
  }
}

/** @param {unknown} value @returns {Record<string, unknown>} */
function asObject(value) {
  return typeof value === "object" && value !== null ? { ...value } : {};
}
