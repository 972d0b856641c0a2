/**
 * Edits as data. A command lists what it replaces, with what was there before and what is there
 * after: to execute writes the latter, to revert the former, so that a revert is exact whatever the
 * edit was. The functions here make commands; null means that there is nothing to do.
 */

/** @import { Box, Change, Command, End, Fragment, Graph, GraphNode, Value, Wire } from "../../types/graph" */

import { freeIds, nodesOf, whyNoWire, wiresInto, wiresOf } from "./graph.js";
import { NODE_TYPES, faultOf, inputOf } from "./table.js";

/** @param {Graph} graph @param {Command} command @returns {Graph} */
export function execute(graph, { changes }) {
  return applied(graph, changes, "after");
}

/** @param {Graph} graph @param {Command} command @returns {Graph} */
export function revert(graph, { changes }) {
  return applied(graph, changes, "before");
}

/** Two commands, one after the other, as one. @param {Command} first @param {Command} second @returns {Command} */
export function joined(first, second) {
  /** @type {Map<string, Change>} */
  const changes = new Map();
  for (const change of [...first.changes, ...second.changes]) {
    const key = `${change.part} ${change.id}`;
    const earlier = changes.get(key);
    changes.set(key, /** @type {Change} */ (earlier ? { ...change, before: earlier.before } : change));
  }
  return { label: second.label, series: second.series, changes: [...changes.values()] };
}

/** Several commands, each made for the graph that the ones before leave, as one. @param {string} label @param {Graph} graph @param {readonly ((graph: Graph) => Command | null)[]} makers */
export function together(label, graph, makers) {
  /** @type {Command | null} */
  let all = null;
  for (const make of makers) {
    const command = make(graph);
    if (command) {
      graph = execute(graph, command);
      all = all ? joined(all, command) : command;
    }
  }
  return all && { ...all, label, series: "" };
}

/** @param {GraphNode} node @returns {Command} */
export function addNode(node) {
  return commandOf(`add ${NODE_TYPES[node.kind].title}`, [nodeChange(null, node)]);
}

/** Nodes and every wire at them. @param {Graph} graph @param {readonly string[]} ids @returns {Command | null} */
export function removeNodes(graph, ids) {
  const gone = ids.flatMap((id) => graph.nodes[id] ?? []);
  const names = new Set(ids);
  const wires = wiresOf(graph).filter(({ from, to }) => names.has(from.node) || names.has(to.node));
  return gone.length
    ? commandOf(gone.length === 1 ? "delete a node" : `delete ${gone.length} nodes`, [
        ...wires.map((wire) => wireChange(wire, null)),
        ...gone.map((node) => nodeChange(node, null)),
      ])
    : null;
}

/** @param {Graph} graph @param {Readonly<Record<string, {x: number, y: number}>>} places @param {string} [series] */
export function moveNodes(graph, places, series = "") {
  return changeNodes(graph, Object.keys(places), "move", (node) => {
    const place = places[node.id];
    return place ? { ...node, x: Math.round(place.x), y: Math.round(place.y) } : node;
  }, series);
}

/** @param {Graph} graph @param {string} id @param {Readonly<Record<string, Value>>} values @param {string} [series] */
export function setValues(graph, id, values, series = "") {
  const node = graph.nodes[id];
  if (!node) {
    return null;
  }
  const specs = NODE_TYPES[node.kind].values;
  for (const [name, value] of Object.entries(values)) {
    const spec = specs[name];
    const fault = spec ? faultOf(spec, value) : "is no value of this node";
    if (fault) {
      throw new Error(`${id}.${name} ${fault}: ${JSON.stringify(value)}`);
    }
  }
  const names = Object.keys(values).filter((name) => !isSame(node.values[name], values[name]));
  return names.length
    ? changeNodes(graph, [id], `change ${names.join(", ").replaceAll("_", " ")}`, (old) => ({ ...old, values: { ...old.values, ...values } }), series)
    : null;
}

/** @param {Graph} graph @param {readonly string[]} ids @param {boolean} collapsed */
export function collapse(graph, ids, collapsed) {
  return changeNodes(graph, ids, collapsed ? "collapse" : "open", (node) => ({ ...node, collapsed }));
}

/** A wire; it takes the place of the one that an input for one has. @param {Graph} graph @param {End} from @param {End} to @returns {Command | null} */
export function connect(graph, from, to) {
  const old = wiresInto(graph, to.node, to.socket);
  if (old.some((wire) => wire.from.node === from.node && wire.from.socket === from.socket)) {
    return null;
  }
  const kind = graph.nodes[to.node]?.kind;
  const replaced = kind && inputOf(kind, to.socket)?.many ? [] : old;
  const left = execute(graph, commandOf("", replaced.map((wire) => wireChange(wire, null))));
  if (whyNoWire(left, from, to)) {
    return null;
  }
  const wire = { id: freeIds(graph, "wires")(), from, to };
  return commandOf("connect", [...replaced.map((gone) => wireChange(gone, null)), wireChange(null, wire)]);
}

/** @param {Graph} graph @param {readonly string[]} ids @returns {Command | null} */
export function disconnect(graph, ids) {
  const wires = ids.flatMap((id) => graph.wires[id] ?? []);
  return wires.length ? commandOf("cut", wires.map((wire) => wireChange(wire, null))) : null;
}

/** Another graph in place of this one. @param {Graph} graph @param {Graph} other @param {string} label @returns {Command} */
export function replaceAll(graph, other, label) {
  /** @type {Change[]} */
  const changes = [];
  for (const id of new Set([...Object.keys(graph.nodes), ...Object.keys(other.nodes)])) {
    changes.push(nodeChange(graph.nodes[id] ?? null, other.nodes[id] ?? null));
  }
  for (const id of new Set([...Object.keys(graph.wires), ...Object.keys(other.wires)])) {
    changes.push(wireChange(graph.wires[id] ?? null, other.wires[id] ?? null));
  }
  return commandOf(label, changes);
}

/** Nodes and the wires between them, to copy. @param {Graph} graph @param {readonly string[]} ids @returns {Fragment} */
export function copy(graph, ids) {
  const names = new Set(ids);
  return {
    nodes: nodesOf(graph).filter(({ id }) => names.has(id)),
    wires: wiresOf(graph).filter(({ from, to }) => names.has(from.node) && names.has(to.node)),
  };
}

/**
 * Puts a fragment in, under new ids and moved.
 * @param {Graph} graph
 * @param {Fragment} fragment
 * @param {{x: number, y: number}} by
 * @param {string} [label]
 * @returns {{command: Command, ids: string[]} | null}
 */
export function paste(graph, fragment, by, label = "paste") {
  if (!fragment.nodes.length) {
    return null;
  }
  const nodeId = freeIds(graph, "nodes");
  const wireId = freeIds(graph, "wires");
  const names = new Map(fragment.nodes.map(({ id }) => [id, nodeId()]));
  /** @param {End} end @returns {End} */
  const renamed = ({ node, socket }) => ({ node: names.get(node) ?? node, socket });
  const nodes = fragment.nodes.map((node) => ({
    ...node,
    id: names.get(node.id) ?? node.id,
    x: Math.round(node.x + by.x),
    y: Math.round(node.y + by.y),
  }));
  const wires = fragment.wires.map(({ from, to }) => ({ id: wireId(), from: renamed(from), to: renamed(to) }));
  return {
    command: commandOf(label, [
      ...nodes.map((node) => nodeChange(null, node)),
      ...wires.map((wire) => wireChange(null, wire)),
    ]),
    ids: nodes.map(({ id }) => id),
  };
}

/**
 * A copy beside the original, with the wires that lead into it from elsewhere.
 * @param {Graph} graph
 * @param {readonly string[]} ids
 * @param {{x: number, y: number}} by
 */
export function duplicate(graph, ids, by) {
  const names = new Set(ids);
  const fragment = copy(graph, ids);
  const incoming = wiresOf(graph).filter(({ from, to }) => names.has(to.node) && !names.has(from.node));
  return paste(graph, { nodes: fragment.nodes, wires: [...fragment.wires, ...incoming] }, by, "duplicate");
}

/**
 * @param {Graph} graph
 * @param {readonly string[]} ids
 * @param {"left" | "top" | "row" | "column"} how
 * @param {(id: string) => Box} boxOf
 */
export function align(graph, ids, how, boxOf) {
  const boxes = ids.filter((id) => graph.nodes[id]).map((id) => ({ id, ...boxOf(id) }));
  const GAP = 32;
  const left = Math.min(...boxes.map(({ x }) => x));
  const top = Math.min(...boxes.map(({ y }) => y));
  /** @type {Record<string, {x: number, y: number}>} */
  const places = {};
  let next = how === "row" ? left : top;
  const sorted = [...boxes].sort((a, b) => (how === "row" ? a.x - b.x : a.y - b.y));
  for (const { id, x, y, width, height } of sorted) {
    places[id] = { left: { x: left, y }, top: { x, y: top }, row: { x: next, y: top }, column: { x: left, y: next } }[how];
    next += (how === "row" ? width : height) + GAP;
  }
  return moveNodes(graph, places);
}

/**
 * @param {Graph} graph
 * @param {readonly string[]} ids
 * @param {string} label
 * @param {(node: GraphNode) => GraphNode} change
 * @param {string} [series]
 * @returns {Command | null}
 */
function changeNodes(graph, ids, label, change, series = "") {
  const changes = ids.flatMap((id) => {
    const before = graph.nodes[id];
    const after = before && change(before);
    return before && after && !isSameNode(before, after) ? [nodeChange(before, after)] : [];
  });
  return changes.length ? commandOf(label, changes, series) : null;
}

/** @param {Graph} graph @param {readonly Change[]} changes @param {"before" | "after"} side @returns {Graph} */
function applied(graph, changes, side) {
  // What no change is about stays the same object: who watches it need not look.
  const nodes = changes.some(({ part }) => part === "node") ? { ...graph.nodes } : graph.nodes;
  const wires = changes.some(({ part }) => part === "wire") ? { ...graph.wires } : graph.wires;
  for (const change of changes) {
    const value = change[side];
    if (value === null) {
      delete (/** @type {Record<string, unknown>} */ (change.part === "node" ? nodes : wires)[change.id]);
    } else if (change.part === "node") {
      /** @type {Record<string, GraphNode>} */ (nodes)[change.id] = /** @type {GraphNode} */ (value);
    } else {
      /** @type {Record<string, Wire>} */ (wires)[change.id] = /** @type {Wire} */ (value);
    }
  }
  return { nodes, wires };
}

/** @param {string} label @param {readonly Change[]} changes @param {string} [series] @returns {Command} */
function commandOf(label, changes, series = "") {
  return { label, changes, series };
}

/** @param {GraphNode | null} before @param {GraphNode | null} after @returns {Change} */
function nodeChange(before, after) {
  return { part: "node", id: (before ?? after)?.id ?? "", before, after };
}

/** @param {Wire | null} before @param {Wire | null} after @returns {Change} */
function wireChange(before, after) {
  return { part: "wire", id: (before ?? after)?.id ?? "", before, after };
}

/** @param {GraphNode} a @param {GraphNode} b */
function isSameNode(a, b) {
  return a.x === b.x && a.y === b.y && a.collapsed === b.collapsed && a.values === b.values;
}

/** @param {Value | undefined} a @param {Value | undefined} b */
function isSame(a, b) {
  return a === b || (Array.isArray(a) && Array.isArray(b) && JSON.stringify(a) === JSON.stringify(b));
}
