/** A workflow as a file: our own JSON, with a version. */

import {endOf, faultsOf, nodesOf, wiresOf} from "./graph.js";
import {asObject} from "./restore.js";
import {NODE_TYPES, faultOf, initialValues} from "./table.js";

export const FORMAT = "flux-api workflow";
export const VERSION = 1;
const MOST_NODES = 2000;

/** The file is not a workflow; the message says where. */
export class BadWorkflow extends Error {}

/** @type {Fn.serialise} */
export function serialise(graph, name) {
	const wires = wiresOf(graph).map(({id, from, to}) => ({id, from: `${from.node}.${from.socket}`, to: `${to.node}.${to.socket}`}));
	return {format: FORMAT, version: VERSION, name, nodes: nodesOf(graph), wires};
}

/** @param {unknown} data */
export function isWorkflow(data) {
	return asObject(data).format === FORMAT;
}

/** @type {Fn.parse} */
export function parse(data) {
	const file = asObject(data);
	require(file.format === FORMAT, "format", file.format, `, not "${FORMAT}": this file is another program's`);
	require(file.version === VERSION, "version", file.version, `; this page reads version ${VERSION}`);
	const nodes = listOf(file, "nodes").map(nodeFrom);
	const wires = listOf(file, "wires").map(wireFrom);
	const graph = {nodes: Object.fromEntries(nodes.map(node => [node.id, node])), wires: Object.fromEntries(wires.map(wire => [wire.id, wire]))};
	const isTwice = Object.keys(graph.nodes).length < nodes.length || Object.keys(graph.wires).length < wires.length;
	const fault = isTwice ? "two nodes or two wires have one id" : faultsOf(graph)[0];
	if (fault) throw new BadWorkflow(fault.replace(/\.$/, ""));
	return {graph, name: typeof file.name === "string" ? file.name.slice(0, 100) : ""};
}

/** @type {Fn.nodeFrom} */
function nodeFrom(data, index) {
	const {id, kind, x, y, collapsed, values} = asObject(data);
	const where = `nodes[${index}]`;
	require(isId(id, "n"), `${where}.id`, id, "; ids are n1, n2 …");
	require(typeof kind === "string" && Object.hasOwn(NODE_TYPES, kind), `${where}.kind`, kind, `; there is ${Object.keys(NODE_TYPES).join(", ")}`);
	const known = /** @type {NodeKind} */ (kind);
	return {
		id: String(id),
		kind: known,
		x: place(x, `${where}.x`),
		y: place(y, `${where}.y`),
		collapsed: collapsed === true,
		values: valuesFrom(known, asObject(values), where)
	};
}

/** @type {Fn.valuesFrom} */
function valuesFrom(kind, given, where) {
	for (const [name, value] of Object.entries(given)) {
		const spec = NODE_TYPES[kind].values[name];
		const fault = spec ? faultOf(spec, value) : `is no value of a ${kind} node`;
		if (fault) throw new BadWorkflow(`${where}.values.${name} ${fault}: ${JSON.stringify(value).slice(0, 80)}`);
	}
	return {...initialValues(kind), .../** @type {Record<string, Value>} */ (given)};
}

/** @type {Fn.wireFrom} */
function wireFrom(data, index) {
	const {id, from, to} = asObject(data);
	const where = `wires[${index}]`;
	require(isId(id, "w"), `${where}.id`, id, "; ids are w1, w2 …");
	return {id: String(id), from: endFrom(from, `${where}.from`), to: endFrom(to, `${where}.to`)};
}

/** @type {Fn.endFrom} */
function endFrom(text, where) {
	require(/^[^.]+\.[^.]+$/.test(String(text)), where, text, "; an end is written n1.model");
	return endOf(String(text));
}

/** @type {Fn.place} */
function place(value, where) {
	require(Number.isFinite(value) && Math.abs(Number(value)) <= 1e6, where, value, ", no place on the canvas");
	return Math.round(Number(value));
}

/** @type {Fn.isId} */
function isId(id, letter) {
	return typeof id === "string" && id[0] === letter && /^[1-9]\d{0,8}$/.test(id.slice(1));
}

/** @type {Fn.listOf} */
function listOf(file, name) {
	const list = file[name];
	if (!Array.isArray(list) || list.length > MOST_NODES) throw new BadWorkflow(`${name} is no list of at most ${MOST_NODES}`);
	return list;
}

/** @type {Fn.require} */
function require(holds, where, value, words) {
	if (!holds) throw new BadWorkflow(`${where} is ${JSON.stringify(value)?.slice(0, 80)}${words}`);
}
