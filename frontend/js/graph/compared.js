/** How a picture is compared with another one of the same sampler on the other service. */

/** @import { Box, Graph } from "../../types/graph" */

import { FIRST_SERVICE, SERVICE_NAMES } from "../config.js";
import { nodesOf, sourceOf, wiresInto, wiresOutOf } from "./graph.js";
import { around } from "./layout.js";
import { planOf } from "./plan.js";
import { Builder } from "./restore.js";

const GAP = 36;

/**
 * A graph in which a sampler has a twin on the other service, with the same seed, and both lead into
 * a Compare node. A twin and a Compare node that are there already are used again.
 * @param {Graph} graph
 * @param {string} samplerId
 * @param {number} seed for a sampler without a fixed one
 * @param {(id: string) => Box} boxOf where the nodes are: what is new goes beside them
 * @returns {{graph: Graph, samplers: [string, string], compare: string} | null} null when it has no model
 */
export function withTwin(graph, samplerId, seed, boxOf) {
  const plan = planOf(graph, samplerId);
  if (!plan?.model) {
    return null;
  }
  const other = SERVICE_NAMES.find((name) => name !== plan.model?.values.service) ?? FIRST_SERVICE;
  const fixed = typeof plan.sampler.values.seed === "number" && plan.sampler.values.seed_mode === "fixed" ? plan.sampler.values.seed : seed;
  const values = { ...plan.sampler.values, seed_mode: "fixed", seed: fixed, num_images: 1 };
  const old = twinOf(graph, samplerId, other);
  const start = { ...graph, nodes: { ...graph.nodes, [samplerId]: { ...plan.sampler, values } } };
  if (old) {
    const twin = graph.nodes[old.twin];
    return twin
      ? { graph: { ...start, nodes: { ...start.nodes, [old.twin]: { ...twin, values } } }, samplers: [samplerId, old.twin], compare: old.compare }
      : null;
  }
  const { x = 0, y = 0, width = 0, height = 0 } = around(nodesOf(graph).map(({ id }) => boxOf(id))) ?? {};
  const builder = new Builder(start);
  const model = builder.node("model", plan.model.x, y + height + GAP, { ...plan.model.values, service: other });
  const twin = builder.node("sampler", plan.sampler.x, y + height + GAP, values);
  const compare = builder.node("compare", x + width + 2 * GAP, plan.sampler.y);
  builder.wire(`${model}.model`, `${twin}.model`);
  for (const { from } of wiresInto(graph, plan.model.id, "loras")) {
    builder.wire(`${from.node}.${from.socket}`, `${model}.loras`);
  }
  for (const { from, to } of wiresInto(graph, samplerId).filter(({ to }) => to.socket !== "model")) {
    builder.wire(`${from.node}.${from.socket}`, `${twin}.${to.socket}`);
  }
  const [a, b] = other === FIRST_SERVICE ? [samplerId, twin] : [twin, samplerId];
  builder.wire(`${a}.image`, `${compare}.a`).wire(`${b}.image`, `${compare}.b`);
  return { graph: builder.graph, samplers: [samplerId, twin], compare };
}

/** @param {Graph} graph @param {string} samplerId @param {string} service */
function twinOf(graph, samplerId, service) {
  for (const { to } of wiresOutOf(graph, samplerId)) {
    if (graph.nodes[to.node]?.kind === "compare") {
      const twin = sourceOf(graph, to.node, to.socket === "a" ? "b" : "a");
      const model = twin && planOf(graph, twin.id)?.model;
      if (twin && model?.values.service === service) {
        return { twin: twin.id, compare: to.node };
      }
    }
  }
  return null;
}
