/** What the menus of the canvas offer: nodes to add, ends to wire, things to do. */

import {copyText, focusFirstField} from "../dom.js";
import * as commands from "../graph/commands.js";
import {nodesOf, whyNoWire, wiresInto, wiresOutOf} from "../graph/graph.js";
import {NODE_KINDS, NODE_TYPES, mainType} from "../graph/table.js";
import {openMenu} from "./menu.js";

/** @type {Fn.openSearch} */
export function openSearch(app, {at, place, end}) {
	const isOut = end?.side === "out";
	/** @param {NodeKind} kind */
	const fitting = kind => NODE_TYPES[kind][isOut ? "inputs" : "outputs"].find(({type}) => type === end?.type);
	/** @param {NodeKind} kind */
	const add = kind => {
		const socket = fitting(kind);
		const x = end && !isOut ? place.x - NODE_TYPES[kind].width : place.x;
		const node = app.editor.add(kind, {x, y: place.y - (end ? 58 : 0)});
		if (end && socket) {
			const own = {node: node.id, socket: socket.name};
			app.editor.do(commands.connect(app.editor.graph, isOut ? end.end : own, isOut ? own : end.end));
		}
		focusFirstField(document.querySelector(`.node[data-node="${node.id}"]`));
	};
	openMenu({
		at,
		label: "Add a node",
		search: true,
		items: NODE_KINDS.filter(kind => !end || fitting(kind)).map(kind => {
			const {title, about} = NODE_TYPES[kind];
			return {words: title, hint: about, type: mainType(kind), act: () => add(kind)};
		})
	});
}

/** @type {Fn.openConnect} */
export function openConnect(app, socket, at, place) {
	const {end, side, type} = socket;
	const {graph} = app.editor;
	const wires = (side === "in" ? wiresInto : wiresOutOf)(graph, end.node, end.socket);
	const others = side === "in" ? "outputs" : "inputs";
	/** @param {End} other */
	const nameOf = other => {
		const node = graph.nodes[other.node];
		if (!node) return "";
		const {title, [others]: sockets} = NODE_TYPES[node.kind];
		return `${title} ${node.id.slice(1)}, ${sockets.find(({name}) => name === other.socket)?.label}`;
	};
	const cuts = wires.map(({id, from, to}) => ({
		words: `Cut: ${nameOf(side === "in" ? from : to)}`,
		icon: "close",
		act: () => app.editor.do(commands.disconnect(app.editor.graph, [id]))
	}));
	const offers = nodesOf(graph).flatMap(node =>
		NODE_TYPES[node.kind][others].flatMap(({name}) => {
			const other = {node: node.id, socket: name};
			const [from, to] = side === "out" ? [end, other] : [other, end];
			const isThere = wires.some(wire => wire.from.node === from.node && wire.to.node === to.node && wire.to.socket === to.socket);
			const act = () => app.editor.do(commands.connect(app.editor.graph, from, to));
			return isThere || whyNoWire(graph, from, to) ? [] : [{words: `Wire to ${nameOf(other)}`, type, act}];
		})
	);
	openMenu({at, label: "Wire", items: [...cuts, ...offers, {words: "Add a node …", icon: "plus", act: () => openSearch(app, {at, place, end: socket})}]});
}

/** @type {Fn.openNodeMenu} */
export function openNodeMenu(app, {at, boxOf}) {
	const {editor, store, runs} = app;
	const ids = store.state.selection;
	const nodes = ids.flatMap(id => editor.graph.nodes[id] ?? []);
	const samplers = nodes.filter(({kind}) => kind === "sampler").map(({id}) => id);
	const isCollapsed = nodes.every(({collapsed}) => collapsed);
	const ways = {left: "Align left edges", top: "Align top edges", row: "Put into a row", column: "Put into a column"};
	openMenu({
		at,
		label: "Node",
		items: [
			...(samplers.length ? [{words: "Run", icon: "run", act: () => void runs.start(samplers)}] : []),
			{words: "Duplicate", keys: "Ctrl D", act: () => editor.duplicate()},
			{words: "Copy", keys: "Ctrl C", act: async () => (await copyText(editor.copied())) && store.say("Copied.")},
			{words: isCollapsed ? "Open" : "Collapse", keys: "C", act: () => editor.do(commands.collapse(editor.graph, ids, !isCollapsed))},
			...Object.entries(ids.length > 1 ? ways : {}).map(([how, words]) => ({
				words,
				act: () => editor.do(commands.align(editor.graph, ids, /** @type {keyof typeof ways} */ (how), boxOf))
			})),
			{words: "Delete", keys: "Del", icon: "delete", act: () => editor.deleteSelected()}
		]
	});
}
