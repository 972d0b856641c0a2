/**
 * Edits as data. A command lists what it replaces, with what was there before and what is there
 * after: to execute writes the latter, to revert the former, so that a revert is exact whatever the
 * edit was. The functions here make commands; null means that there is nothing to do.
 */

import {endOf, freeIds, nodesOf, whyNoWire, wiresInto, wiresOf} from "./graph.js";
import {NODE_TYPES, faultOf, inputOf} from "./table.js";

const GAP = 32;

/** @type {Fn.execute} */
export function execute(graph, {changes}) {
	return applied(graph, changes, "after");
}

/** @type {Fn.revert} */
export function revert(graph, {changes}) {
	return applied(graph, changes, "before");
}

/** @type {Fn.joined} */
export function joined(first, second) {
	/** @type {Map<string, Change>} */
	const changes = new Map();
	for (const change of [...first.changes, ...second.changes]) {
		const key = `${change.part} ${change.id}`;
		const earlier = changes.get(key);
		changes.set(key, /** @type {Change} */ (earlier ? {...change, before: earlier.before} : change));
	}
	return {...second, changes: [...changes.values()]};
}

/** @type {Fn.together} */
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
	return all && {...all, label, series: ""};
}

/** @param {GraphNode} node */
export function addNode(node) {
	return commandOf(`add ${NODE_TYPES[node.kind].title}`, [nodeChange(null, node)]);
}

/** @type {Fn.removeNodes} */
export function removeNodes(graph, ids) {
	const gone = ids.flatMap(id => graph.nodes[id] ?? []);
	const wires = wiresOf(graph).filter(({from, to}) => ids.includes(from.node) || ids.includes(to.node));
	if (!gone.length) return null;
	const changes = [...wires.map(wire => wireChange(wire, null)), ...gone.map(node => nodeChange(node, null))];
	return commandOf(gone.length === 1 ? "delete a node" : `delete ${gone.length} nodes`, changes);
}

/** @type {Fn.moveNodes} */
export function moveNodes(graph, places, series) {
	const move = (/** @type {GraphNode} */ node) => {
		const {x, y} = places[node.id] ?? node;
		return {...node, x: Math.round(x), y: Math.round(y)};
	};
	return changeNodes(graph, Object.keys(places), "move", move, series);
}

/** @type {Fn.setValues} */
export function setValues(graph, id, values, series) {
	const node = graph.nodes[id];
	if (!node) return null;
	for (const [name, value] of Object.entries(values)) {
		const spec = NODE_TYPES[node.kind].values[name];
		const fault = spec ? faultOf(spec, value) : "is no value of this node";
		if (fault) throw new Error(`${id}.${name} ${fault}: ${JSON.stringify(value)}`);
	}
	const names = Object.keys(values).filter(name => !isSame(node.values[name], values[name]));
	if (!names.length) return null;
	const change = (/** @type {GraphNode} */ old) => ({...old, values: {...old.values, ...values}});
	return changeNodes(graph, [id], `change ${names.join(", ").replaceAll("_", " ")}`, change, series);
}

/** @type {Fn.collapse} */
export function collapse(graph, ids, collapsed) {
	return changeNodes(graph, ids, collapsed ? "collapse" : "open", node => ({...node, collapsed}));
}

/** @type {Fn.connect} */
export function connect(graph, from, to) {
	const old = wiresInto(graph, to.node, to.socket);
	if (old.some(wire => wire.from.node === from.node && wire.from.socket === from.socket)) return null;
	const kind = graph.nodes[to.node]?.kind;
	const replaced = (kind && inputOf(kind, to.socket)?.many ? [] : old).map(wire => wireChange(wire, null));
	if (whyNoWire(execute(graph, commandOf("", replaced)), from, to)) return null;
	return commandOf("connect", [...replaced, wireChange(null, {id: freeIds(graph, "wires")(), from, to})]);
}

/** For `together`. @type {Fn.connecting} */
export function connecting(from, to) {
	return (/** @type {Graph} */ graph) => connect(graph, endOf(from), endOf(to));
}

/** @type {Fn.feeding} */
export function feeding(graph, id, sampler) {
	const masks = nodesOf(graph).filter(node => node.kind === "mask" && !wiresInto(graph, node.id, "image").length);
	return [...sampler, ...masks.map(mask => mask.id)].map(to => connecting(`${id}.image`, `${to}.image`));
}

/** @type {Fn.disconnect} */
export function disconnect(graph, ids) {
	const wires = ids.flatMap(id => graph.wires[id] ?? []);
	return wires.length
		? commandOf(
				"cut",
				wires.map(wire => wireChange(wire, null))
			)
		: null;
}

/** @type {Fn.replaceAll} */
export function replaceAll(graph, other, label) {
	return commandOf(label, [
		...Object.keys({...graph.nodes, ...other.nodes}).map(id => nodeChange(graph.nodes[id] ?? null, other.nodes[id] ?? null)),
		...Object.keys({...graph.wires, ...other.wires}).map(id => wireChange(graph.wires[id] ?? null, other.wires[id] ?? null))
	]);
}

/** @type {Fn.copy} */
export function copy(graph, ids) {
	return {
		nodes: nodesOf(graph).filter(({id}) => ids.includes(id)),
		wires: wiresOf(graph).filter(({from, to}) => ids.includes(from.node) && ids.includes(to.node))
	};
}

/** @type {Fn.paste} */
export function paste(graph, fragment, by, label = "paste") {
	if (!fragment.nodes.length) return null;
	const nodeId = freeIds(graph, "nodes");
	const wireId = freeIds(graph, "wires");
	const names = new Map(fragment.nodes.map(({id}) => [id, nodeId()]));
	const renamed = (/** @type {End} */ {node, socket}) => ({node: names.get(node) ?? node, socket});
	const nodes = fragment.nodes.map(node => ({...node, id: names.get(node.id) ?? "", x: Math.round(node.x + by.x), y: Math.round(node.y + by.y)}));
	const wires = fragment.wires.map(({from, to}) => ({id: wireId(), from: renamed(from), to: renamed(to)}));
	const changes = [...nodes.map(node => nodeChange(null, node)), ...wires.map(wire => wireChange(null, wire))];
	return {command: commandOf(label, changes), ids: nodes.map(({id}) => id)};
}

/** @type {Fn.duplicate} */
export function duplicate(graph, ids, by) {
	const {nodes} = copy(graph, ids);
	return paste(graph, {nodes, wires: wiresOf(graph).filter(({to}) => ids.includes(to.node))}, by, "duplicate");
}

/** @type {Fn.align} */
export function align(graph, ids, how, boxOf) {
	const boxes = ids.filter(id => graph.nodes[id]).map(id => ({id, ...boxOf(id)}));
	const left = Math.min(...boxes.map(({x}) => x));
	const top = Math.min(...boxes.map(({y}) => y));
	/** @type {Record<string, Point>} */
	const places = {};
	let next = how === "row" ? left : top;
	boxes.sort((a, b) => (how === "row" ? a.x - b.x : a.y - b.y));
	for (const {id, x, y, width, height} of boxes) {
		places[id] = {left: {x: left, y}, top: {x, y: top}, row: {x: next, y: top}, column: {x: left, y: next}}[how];
		next += (how === "row" ? width : height) + GAP;
	}
	return moveNodes(graph, places);
}

/** @type {Fn.changeNodes} */
function changeNodes(graph, ids, label, change, series) {
	const changes = ids.flatMap(id => {
		const before = graph.nodes[id];
		const after = before && change(before);
		return before && after && !isSameNode(before, after) ? [nodeChange(before, after)] : [];
	});
	return changes.length ? commandOf(label, changes, series) : null;
}

/** @type {Fn.applied} */
function applied(graph, changes, side) {
	// What no change is about stays the same object: who watches it need not look.
	const copied = (/** @type {Change["part"]} */ part, /** @type {Record<string, any>} */ old) => {
		const mine = changes.filter(change => change.part === part);
		if (!mine.length) return old;
		const all = {...old};
		for (const {id, [side]: value} of mine) {
			if (value) all[id] = value;
			else delete all[id];
		}
		return all;
	};
	return {nodes: copied("node", graph.nodes), wires: copied("wire", graph.wires)};
}

/** @type {Fn.commandOf} */
function commandOf(label, changes, series = "") {
	return {label, changes, series};
}

/** @type {Fn.changeOf<"node", GraphNode>} */
const nodeChange = (before, after) => ({part: "node", id: (before ?? after)?.id ?? "", before, after});

/** @type {Fn.changeOf<"wire", Wire>} */
const wireChange = (before, after) => ({part: "wire", id: (before ?? after)?.id ?? "", before, after});

/** @type {Fn.isSameNode} */
function isSameNode(a, b) {
	return a.x === b.x && a.y === b.y && a.collapsed === b.collapsed && a.values === b.values;
}

/** @type {Fn.isSame} */
function isSame(a, b) {
	return a === b || (Array.isArray(a) && Array.isArray(b) && JSON.stringify(a) === JSON.stringify(b));
}
