/** Questions about a graph. */

/** @import { End, Graph, GraphNode, NodeKind, SocketType, Value, Wire } from "../../types/graph" */

import { NODE_TYPES, initialValues, inputOf, outputOf } from "./table.js";

/** @type {Graph} */
export const EMPTY_GRAPH = Object.freeze({ nodes: Object.freeze({}), wires: Object.freeze({}) });

/**
 * @param {string} id
 * @param {NodeKind} kind
 * @param {{x: number, y: number}} place
 * @param {Record<string, Value>} [values]
 * @returns {GraphNode}
 */
export function newNode(id, kind, { x, y }, values = {}) {
  return { id, kind, x: Math.round(x), y: Math.round(y), collapsed: false, values: { ...initialValues(kind), ...values } };
}

/** The next free ids: `n7` for nodes, `w7` for wires. @param {Graph} graph @param {"nodes" | "wires"} part */
export function freeIds(graph, part) {
  const letter = part === "nodes" ? "n" : "w";
  let last = Math.max(0, ...Object.keys(graph[part]).map(numberOf));
  return () => `${letter}${++last}`;
}

/** Nodes and wires in the order in which they were made. @param {Graph} graph @returns {GraphNode[]} */
export function nodesOf(graph) {
  return Object.values(graph.nodes).sort(byAge);
}

/** @param {Graph} graph @returns {Wire[]} */
export function wiresOf(graph) {
  return Object.values(graph.wires).sort(byAge);
}

/** Wires by the nodes at their ends. @type {WeakMap<Graph["wires"], {into: Map<string, Wire[]>, outOf: Map<string, Wire[]>}>} */
const indexes = new WeakMap();

/** Made once for each state of the wires: every view of a node asks, at every change. @param {Graph} graph */
function indexOf(graph) {
  let index = indexes.get(graph.wires);
  if (!index) {
    index = { into: new Map(), outOf: new Map() };
    for (const wire of wiresOf(graph)) {
      index.into.set(wire.to.node, [...(index.into.get(wire.to.node) ?? []), wire]);
      index.outOf.set(wire.from.node, [...(index.outOf.get(wire.from.node) ?? []), wire]);
    }
    indexes.set(graph.wires, index);
  }
  return index;
}

/** Wires into a node, or into one socket of it, oldest first. @param {Graph} graph @param {string} node @param {string} [socket] */
export function wiresInto(graph, node, socket) {
  const wires = indexOf(graph).into.get(node) ?? [];
  return socket === undefined ? wires : wires.filter(({ to }) => to.socket === socket);
}

/** @param {Graph} graph @param {string} node @param {string} [socket] */
export function wiresOutOf(graph, node, socket) {
  const wires = indexOf(graph).outOf.get(node) ?? [];
  return socket === undefined ? wires : wires.filter(({ from }) => from.socket === socket);
}

/** What is wired to an input, oldest first. @param {Graph} graph @param {string} node @param {string} socket @returns {GraphNode[]} */
export function sourcesOf(graph, node, socket) {
  return wiresInto(graph, node, socket).flatMap(({ from }) => graph.nodes[from.node] ?? []);
}

/** @param {Graph} graph @param {string} node @param {string} socket @returns {GraphNode | null} */
export function sourceOf(graph, node, socket) {
  return sourcesOf(graph, node, socket)[0] ?? null;
}

/** The type of what flows out of a socket, or into it. @param {Graph} graph @param {End} end @param {"in" | "out"} side @returns {SocketType | null} */
export function typeAt(graph, end, side) {
  const kind = graph.nodes[end.node]?.kind;
  if (!kind) {
    return null;
  }
  return (side === "out" ? outputOf(kind, end.socket) : inputOf(kind, end.socket))?.type ?? null;
}

/**
 * Why a wire cannot go from an output to an input; "" when it can.
 * @param {Graph} graph
 * @param {End} from
 * @param {End} to
 */
export function whyNoWire(graph, from, to) {
  const given = typeAt(graph, from, "out");
  const taken = typeAt(graph, to, "in");
  if (!given || !taken) {
    return "There is no such socket.";
  }
  if (given !== taken) {
    return `An output for ${given} does not fit an input for ${taken}.`;
  }
  if (from.node === to.node || leadsTo(graph, to.node, from.node)) {
    return "The wire would lead back to where it starts.";
  }
  return "";
}

/** Whether wires lead from one node to another. @param {Graph} graph @param {string} start @param {string} end */
export function leadsTo(graph, start, end) {
  const wires = Object.values(graph.wires);
  const seen = new Set([start]);
  const open = [start];
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    for (const { from, to } of wires) {
      if (from.node === node && !seen.has(to.node)) {
        if (to.node === end) {
          return true;
        }
        seen.add(to.node);
        open.push(to.node);
      }
    }
  }
  return false;
}

/** Nodes in an order in which each comes after what it needs. @param {Graph} graph @returns {GraphNode[]} */
export function inOrder(graph) {
  /** @type {GraphNode[]} */
  const ordered = [];
  const seen = new Set();
  /** @param {GraphNode} node */
  const visit = (node) => {
    if (!seen.has(node.id)) {
      seen.add(node.id);
      for (const { from } of wiresInto(graph, node.id)) {
        const source = graph.nodes[from.node];
        if (source) {
          visit(source);
        }
      }
      ordered.push(node);
    }
  };
  nodesOf(graph).forEach(visit);
  return ordered;
}

/**
 * What is wrong with a graph, one sentence each: for tests and for files from elsewhere.
 * @param {Graph} graph
 * @returns {string[]}
 */
export function faultsOf(graph) {
  const faults = [];
  for (const [id, node] of Object.entries(graph.nodes)) {
    if (node.id !== id || !(node.kind in NODE_TYPES)) {
      faults.push(`node ${id} has the id ${node.id} and the kind ${node.kind}`);
    }
  }
  const taken = new Set();
  for (const [id, { from, to }] of Object.entries(graph.wires)) {
    const others = { nodes: graph.nodes, wires: Object.fromEntries(Object.entries(graph.wires).filter(([name]) => name !== id)) };
    const why = whyNoWire(others, from, to);
    const kind = graph.nodes[to.node]?.kind;
    const place = `${to.node}.${to.socket}`;
    const isSecond = kind && !inputOf(kind, to.socket)?.many && taken.has(place);
    taken.add(place);
    if (why || isSecond) {
      faults.push(`wire ${id}: ${why || `${place} takes one wire`}`);
    }
  }
  return faults;
}

/** @param {{id: string}} a @param {{id: string}} b */
function byAge(a, b) {
  return numberOf(a.id) - numberOf(b.id);
}

/** @param {string} id */
function numberOf(id) {
  return Number(id.slice(1));
}
