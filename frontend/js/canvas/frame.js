/** The frame of a node: its title bar, its sockets, its body. */

import {button, find, make} from "../dom.js";
import {collapse} from "../graph/commands.js";
import {wiresInto, wiresOutOf} from "../graph/graph.js";
import {NODE_TYPES, SOCKET_NAMES} from "../graph/table.js";
import {mountNode} from "../nodes/nodes.js";
import {socketsHeight, widthOf} from "./geometry.js";

/** What ends the view in an element. @type {WeakMap<HTMLElement, () => void>} */
const ends = new WeakMap();

/** @type {Fn.frameOf} */
export function frameOf(app, node) {
	const {title, inputs, outputs} = NODE_TYPES[node.kind];
	const fold = () => app.editor.do(collapse(app.editor.graph, [node.id], !app.editor.graph.nodes[node.id]?.collapsed));
	const head = make("header.node-head", button({label: "Collapse", icon: "fold", kind: "bare fold", act: fold}), make("h2", title));
	if (node.kind === "sampler") head.append(button({label: "Run this sampler", icon: "run", kind: "bare", act: () => void app.runs.start([node.id])}));
	const sockets = make(
		"div.sockets",
		make("div.inputs", ...inputs.map(socket => socketButton(socket, "in"))),
		make("div.outputs", ...outputs.map(socket => socketButton(socket, "out")))
	);
	sockets.style.height = `${socketsHeight(node)}px`;
	const body = make("div.node-body");
	const element = make("article.node", {"data-node": node.id, "data-kind": node.kind, tabindex: 0, "aria-label": `${title} node`}, head, sockets, body);
	element.style.width = `${widthOf(node)}px`;
	ends.set(element, mountNode(app, node, body, "canvas"));
	return element;
}

/** @type {Fn.updateFrame} */
export function updateFrame(app, element, node) {
	// Not a transform: nodes in places of their own are many layers, these are one.
	[element.style.left, element.style.top] = [`${node.x}px`, `${node.y}px`];
	element.dataset.collapsed = String(node.collapsed);
	find(".fold", element).ariaExpanded = String(!node.collapsed);
	const {graph} = app.editor;
	for (const socket of element.querySelectorAll(".socket")) {
		const name = socket.getAttribute("data-socket") ?? "";
		const isInput = socket.getAttribute("data-side") === "in";
		const ends = isInput ? wiresInto(graph, node.id, name).map(({from}) => from) : wiresOutOf(graph, node.id, name).map(({to}) => to);
		const others = ends.flatMap(end => graph.nodes[end.node] ?? []).map(({kind}) => NODE_TYPES[kind].title);
		socket.setAttribute("data-wired", String(ends.length > 0));
		socket.setAttribute(
			"aria-label",
			`${isInput ? "Input" : "Output"} ${socket.textContent}: ${others.length ? `wired to ${others.join(", ")}` : "not wired"}`
		);
	}
}

/** @param {HTMLElement} element */
export function endFrame(element) {
	ends.get(element)?.();
	ends.delete(element);
}

/** @type {Fn.socketButton} */
function socketButton({name, type, label}, side) {
	return make(
		"button.socket",
		{"data-socket": name, "data-side": side, "data-type": type, title: `${SOCKET_NAMES[type]}: drag to wire, click for a list`},
		make("span.dot"),
		make("span.socket-name", label)
	);
}
