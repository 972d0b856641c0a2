/** Questions about a graph. */

import {NODE_TYPES, initialValues, inputOf, outputOf} from "./table.js";

/** @type {Graph} */
export const EMPTY_GRAPH = {nodes: {}, wires: {}};

/** @type {Fn.newNode} */
export function newNode(id, kind, {x, y}, values) {
	return {id, kind, x: Math.round(x), y: Math.round(y), collapsed: false, values: {...initialValues(kind), ...values}};
}

/** @type {Fn.freeIds} */
export function freeIds(graph, part) {
	let last = Math.max(0, ...Object.keys(graph[part]).map(numberOf));
	return () => `${part[0]}${++last}`;
}

/** @type {Fn.endOf} */
export function endOf(text) {
	const [node = "", socket = ""] = text.split(".");
	return {node, socket};
}

/** Nodes and wires in the order in which they were made. @param {Graph} graph */
export function nodesOf(graph) {
	return Object.values(graph.nodes).sort(byAge);
}

/** @param {Graph} graph */
export function wiresOf(graph) {
	return Object.values(graph.wires).sort(byAge);
}

/** Wires by the nodes at their ends. @type {WeakMap<Graph["wires"], Record<"to" | "from", Map<string, Wire[]>>>} */
const indexes = new WeakMap();

/** Made once for each state of the wires: every view of a node asks, at every change. @type {Fn.wiresAt} */
function wiresAt(graph, end, node, socket) {
	let index = indexes.get(graph.wires);
	if (!index) {
		index = {to: new Map(), from: new Map()};
		for (const wire of wiresOf(graph)) {
			for (const [side, map] of /** @type {["to" | "from", Map<string, Wire[]>][]} */ (Object.entries(index))) {
				map.set(wire[side].node, [...(map.get(wire[side].node) ?? []), wire]);
			}
		}
		indexes.set(graph.wires, index);
	}
	const wires = index[end].get(node) ?? NONE;
	return socket === undefined ? wires : wires.filter(wire => wire[end].socket === socket);
}

/** @type {Wire[]} */
const NONE = [];

/** @type {Fn.wiresInto} */
export const wiresInto = (graph, node, socket) => wiresAt(graph, "to", node, socket);

/** @type {Fn.wiresOutOf} */
export const wiresOutOf = (graph, node, socket) => wiresAt(graph, "from", node, socket);

/** @type {Fn.sourcesOf} */
export function sourcesOf(graph, node, socket) {
	return wiresInto(graph, node, socket).flatMap(({from}) => graph.nodes[from.node] ?? []);
}

/** @type {Fn.sourceOf} */
export function sourceOf(graph, node, socket) {
	return sourcesOf(graph, node, socket)[0] ?? null;
}

/** @type {Fn.typeAt} */
export function typeAt(graph, end, side) {
	const kind = graph.nodes[end.node]?.kind;
	return (kind && (side === "out" ? outputOf : inputOf)(kind, end.socket)?.type) ?? null;
}

const CIRCLE = "The wire would lead back to where it starts.";

/** @type {Fn.whyNoWire} */
export function whyNoWire(graph, from, to) {
	const given = typeAt(graph, from, "out");
	const taken = typeAt(graph, to, "in");
	if (!given || !taken) return "There is no such socket.";
	if (given !== taken) return `An output for ${given} does not fit an input for ${taken}.`;
	return from.node === to.node || leadsTo(graph, to.node, from.node) ? CIRCLE : "";
}

/** @type {Fn.leadsTo} */
export function leadsTo(graph, start, end) {
	const seen = new Set([start]);
	for (const node of seen) {
		for (const {to} of wiresOutOf(graph, node)) seen.add(to.node);
	}
	seen.delete(start);
	return seen.has(end);
}

/** Nodes in an order in which each comes after what it needs. @param {Graph} graph */
export function inOrder(graph) {
	/** @type {Set<GraphNode>} */
	const ordered = new Set();
	const visit = (/** @type {GraphNode} */ node) => {
		if (ordered.has(node)) return;
		wiresInto(graph, node.id)
			.flatMap(({from}) => graph.nodes[from.node] ?? [])
			.forEach(visit);
		ordered.add(node);
	};
	nodesOf(graph).forEach(visit);
	return [...ordered];
}

/** @type {Fn.faultsOf} */
export function faultsOf(graph) {
	const nodes = Object.entries(graph.nodes).filter(([id, node]) => node.id !== id || !(node.kind in NODE_TYPES));
	const faults = nodes.map(([id, node]) => `node ${id} has the id ${node.id} and the kind ${node.kind}`);
	const taken = new Set();
	const unwired = {...graph, wires: {}};
	for (const [id, {from, to}] of Object.entries(graph.wires)) {
		const place = `${to.node}.${to.socket}`;
		const kind = graph.nodes[to.node]?.kind;
		const isSecond = kind && !inputOf(kind, to.socket)?.many && taken.has(place);
		const why = whyNoWire(unwired, from, to) || (isSecond && `${place} takes one wire`);
		taken.add(place);
		if (why) faults.push(`wire ${id}: ${why}`);
	}
	// What neither begins nor ends anywhere goes round.
	let left = Object.values(graph.wires);
	for (let before = -1; left.length !== before;) {
		before = left.length;
		const [sources, targets] = [new Set(left.map(({from}) => from.node)), new Set(left.map(({to}) => to.node))];
		left = left.filter(({from, to}) => targets.has(from.node) && sources.has(to.node));
	}
	if (left[0]) faults.push(`wire ${left[0].id}: ${CIRCLE}`);
	return faults;
}

/** @type {Fn.byAge} */
const byAge = (a, b) => numberOf(a.id) - numberOf(b.id);

/** @param {string} id */
const numberOf = id => Number(id.slice(1));
