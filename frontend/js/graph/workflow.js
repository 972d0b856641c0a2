/** A workflow as a file: our own JSON, with a version. */

/** @import { End, Graph, GraphNode, NodeKind, Value, Wire } from "../../types/graph" */

import { faultsOf, nodesOf, wiresOf } from "./graph.js";
import { NODE_TYPES, faultOf, initialValues } from "./table.js";

export const FORMAT = "flux-api workflow";
export const VERSION = 1;
const MOST_NODES = 2000;

/** The file is not a workflow; the message says where. */
export class BadWorkflow extends Error {}

/** @param {Graph} graph @param {string} name */
export function serialise(graph, name) {
  return {
    format: FORMAT,
    version: VERSION,
    name,
    nodes: nodesOf(graph),
    wires: wiresOf(graph).map(({ id, from, to }) => ({ id, from: `${from.node}.${from.socket}`, to: `${to.node}.${to.socket}` })),
  };
}

/** @param {unknown} data @returns {boolean} */
export function isWorkflow(data) {
  return asObject(data).format === FORMAT;
}

/** @param {unknown} data @returns {{graph: Graph, name: string}} */
export function parse(data) {
  const file = asObject(data);
  if (file.format !== FORMAT) {
    throw new BadWorkflow(`format is ${JSON.stringify(file.format)}, not "${FORMAT}": this file is another program's`);
  }
  if (file.version !== VERSION) {
    throw new BadWorkflow(`version is ${JSON.stringify(file.version)}; this page reads version ${VERSION}`);
  }
  const nodes = listOf(file, "nodes").map(nodeFrom);
  const wires = listOf(file, "wires").map(wireFrom);
  const graph = {
    nodes: Object.fromEntries(nodes.map((node) => [node.id, node])),
    wires: Object.fromEntries(wires.map((wire) => [wire.id, wire])),
  };
  if (Object.keys(graph.nodes).length < nodes.length || Object.keys(graph.wires).length < wires.length) {
    throw new BadWorkflow("two nodes or two wires have one id");
  }
  const [fault] = faultsOf(graph);
  if (fault) {
    throw new BadWorkflow(fault);
  }
  return { graph, name: typeof file.name === "string" ? file.name.slice(0, 100) : "" };
}

/** @param {unknown} data @param {number} index @returns {GraphNode} */
function nodeFrom(data, index) {
  const { id, kind, x, y, collapsed, values } = asObject(data);
  const where = `nodes[${index}]`;
  if (typeof id !== "string" || !/^n[1-9]\d{0,8}$/.test(id)) {
    throw new BadWorkflow(`${where}.id is ${JSON.stringify(id)}; ids are n1, n2 …`);
  }
  if (typeof kind !== "string" || !Object.hasOwn(NODE_TYPES, kind)) {
    throw new BadWorkflow(`${where}.kind is ${JSON.stringify(kind)}; there is ${Object.keys(NODE_TYPES).join(", ")}`);
  }
  const known = /** @type {NodeKind} */ (kind);
  return {
    id,
    kind: known,
    x: place(x, `${where}.x`),
    y: place(y, `${where}.y`),
    collapsed: collapsed === true,
    values: valuesFrom(known, asObject(values), where),
  };
}

/** @param {NodeKind} kind @param {Record<string, unknown>} given @param {string} where */
function valuesFrom(kind, given, where) {
  const values = initialValues(kind);
  for (const [name, value] of Object.entries(given)) {
    const spec = NODE_TYPES[kind].values[name];
    const fault = spec ? faultOf(spec, value) : `is no value of a ${kind} node`;
    if (fault) {
      throw new BadWorkflow(`${where}.values.${name} ${fault}: ${JSON.stringify(value).slice(0, 80)}`);
    }
    values[name] = /** @type {Value} */ (value);
  }
  return values;
}

/** @param {unknown} data @param {number} index @returns {Wire} */
function wireFrom(data, index) {
  const { id, from, to } = asObject(data);
  const where = `wires[${index}]`;
  if (typeof id !== "string" || !/^w[1-9]\d{0,8}$/.test(id)) {
    throw new BadWorkflow(`${where}.id is ${JSON.stringify(id)}; ids are w1, w2 …`);
  }
  return { id, from: endFrom(from, `${where}.from`), to: endFrom(to, `${where}.to`) };
}

/** @param {unknown} text @param {string} where @returns {End} */
function endFrom(text, where) {
  const [node, socket, ...rest] = typeof text === "string" ? text.split(".") : [];
  if (!node || !socket || rest.length) {
    throw new BadWorkflow(`${where} is ${JSON.stringify(text)}; an end is written n1.model`);
  }
  return { node, socket };
}

/** @param {unknown} value @param {string} where */
function place(value, where) {
  if (typeof value !== "number" || !Number.isFinite(value) || Math.abs(value) > 1e6) {
    throw new BadWorkflow(`${where} is ${JSON.stringify(value)}, no place on the canvas`);
  }
  return Math.round(value);
}

/** @param {Record<string, unknown>} file @param {string} name @returns {unknown[]} */
function listOf(file, name) {
  const list = file[name];
  if (!Array.isArray(list) || list.length > MOST_NODES) {
    throw new BadWorkflow(`${name} is no list of at most ${MOST_NODES}`);
  }
  return list;
}

/** @param {unknown} value @returns {Record<string, unknown>} */
function asObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : {};
}
