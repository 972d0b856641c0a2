/** What a sampler draws with: the nodes that lead into it, by their part in the request. */

/** @import { Graph, GraphNode } from "../../types/graph" */

import { nodesOf, sourceOf, sourcesOf, wiresOutOf } from "./graph.js";

/**
 * @typedef {object} Plan
 * @property {GraphNode} sampler
 * @property {GraphNode | null} model
 * @property {GraphNode[]} loras
 * @property {GraphNode | null} prompt
 * @property {GraphNode | null} negative
 * @property {GraphNode | null} image
 * @property {GraphNode | null} mask
 * @property {GraphNode | null} references
 */

/** @param {Graph} graph @param {string} samplerId @returns {Plan | null} */
export function planOf(graph, samplerId) {
  const sampler = graph.nodes[samplerId];
  if (sampler?.kind !== "sampler") {
    return null;
  }
  const model = sourceOf(graph, samplerId, "model");
  return {
    sampler,
    model,
    loras: model ? sourcesOf(graph, model.id, "loras") : [],
    prompt: sourceOf(graph, samplerId, "prompt"),
    negative: sourceOf(graph, samplerId, "negative"),
    image: sourceOf(graph, samplerId, "image"),
    mask: sourceOf(graph, samplerId, "mask"),
    references: sourceOf(graph, samplerId, "references"),
  };
}

/** @param {Graph} graph */
export function samplersOf(graph) {
  return nodesOf(graph).filter(({ kind }) => kind === "sampler");
}

/**
 * The sampler that the form shows: the one that is wanted, else the first one that draws into an
 * image, else the first.
 * @param {Graph} graph
 * @param {string | null} [wanted]
 */
export function mainSampler(graph, wanted = null) {
  const samplers = samplersOf(graph);
  return (
    samplers.find(({ id }) => id === wanted) ??
    samplers.find(({ id }) => wiresOutOf(graph, id).length > 0) ??
    samplers[0] ??
    null
  );
}

/**
 * The sampler whose picture arrives at an input, through Image nodes; or the Image input node that it comes from.
 * @param {Graph} graph
 * @param {string} nodeId
 * @param {string} socket
 * @returns {GraphNode | null}
 */
export function originOf(graph, nodeId, socket) {
  let source = sourceOf(graph, nodeId, socket);
  while (source?.kind === "image") {
    source = sourceOf(graph, source.id, "image");
  }
  return source;
}

/** Samplers that must run before this one, because it starts from their picture. @param {Graph} graph @param {string} samplerId */
export function samplersBefore(graph, samplerId) {
  return ["image", "references"].flatMap((socket) => {
    const origin = originOf(graph, samplerId, socket);
    return origin?.kind === "sampler" ? [origin.id] : [];
  });
}
