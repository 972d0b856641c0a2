/** The model that a node stands for. */

/** @import { Model } from "../types/api" */
/** @import { GraphNode } from "../types/graph" */
/** @import { State } from "../types/state" */

import { planOf } from "./graph/plan.js";
import { serviceNamed } from "./services.js";

/** The chosen one, else the service's default. Null before the list is known. @param {State} state @param {GraphNode | null | undefined} node @returns {Model | null} */
export function modelOf(state, node) {
  const service = serviceNamed(state, node?.values.service);
  const wanted = node?.values.model ?? service?.info?.default_model;
  return service?.models.find(({ id }) => id === wanted) ?? null;
}

/** The model that a sampler draws with. @param {State} state @param {string} sampler */
export function modelOfSampler(state, sampler) {
  return modelOf(state, planOf(state.document.graph, sampler)?.model);
}
