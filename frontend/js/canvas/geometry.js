/** Where things are on the canvas, px at scale 1. Sockets stand at fixed places, so that wires need no measuring. */

import {NODE_TYPES} from "../graph/table.js";

export const HEAD = 38;
const ROW = 26;
const SOCKETS_TOP = HEAD + 8;
const LEAST_SCALE = 0.15;
const MOST_SCALE = 2.5;
/** Around a graph that is fitted into the view; below it the tools are. */
const MARGIN = 40;
const TOOLS = 72;
/** On a larger screen a graph is larger too, px. */
const USUAL_WIDTH = 1920;

/** @param {GraphNode} node */
export const widthOf = ({kind}) => NODE_TYPES[kind].width;

/** How high the rows of sockets are. @param {GraphNode} node */
export function socketsHeight({kind}) {
	const rows = Math.max(NODE_TYPES[kind].inputs.length, NODE_TYPES[kind].outputs.length);
	return rows ? rows * ROW + 12 : 0;
}

/** The middle of a socket. @type {Fn.anchorAt} */
export function anchorAt(graph, end, side) {
	const node = graph.nodes[end.node];
	if (!node) return {x: 0, y: 0};
	const {inputs, outputs, width} = NODE_TYPES[node.kind];
	const row = Math.max(0, (side === "in" ? inputs : outputs).findIndex(({name}) => name === end.socket));
	return {x: node.x + (side === "in" ? 0 : width), y: node.y + (node.collapsed ? HEAD / 2 : SOCKETS_TOP + row * ROW + ROW / 2)};
}

/** @type {Fn.pathBetween} */
export function pathBetween(from, to) {
	const reach = Math.max(40, Math.min(180, Math.abs(to.x - from.x) / 2 + Math.abs(to.y - from.y) / 6));
	return `M${from.x} ${from.y}C${from.x + reach} ${from.y} ${to.x - reach} ${to.y} ${to.x} ${to.y}`;
}

/** @type {Fn.toWorld} */
export function toWorld({x, y, scale}, point) {
	return {x: (point.x - x) / scale, y: (point.y - y) / scale};
}

/** @type {Fn.onScreen} */
export function onScreen(box, {x, y, scale}) {
	return {x: x + box.x * scale, y: y + box.y * scale, width: box.width * scale, height: box.height * scale};
}

/** @type {Fn.zoomed} */
export function zoomed(camera, point, factor) {
	const scale = Math.min(MOST_SCALE, Math.max(LEAST_SCALE, camera.scale * factor));
	const ratio = scale / camera.scale;
	return {scale, x: point.x - (point.x - camera.x) * ratio, y: point.y - (point.y - camera.y) * ratio};
}

/** @type {Fn.fitted} */
export function fitted(box, room, tools = TOOLS) {
	const [across, down] = [room.width - 2 * MARGIN, room.height - MARGIN - tools];
	const scale = Math.min(
		Math.max(1, room.width / USUAL_WIDTH),
		Math.max(LEAST_SCALE, Math.min(across / Math.max(1, box.width), down / Math.max(1, box.height)))
	);
	return {
		scale,
		x: Math.round(MARGIN + (across - box.width * scale) / 2 - box.x * scale),
		y: Math.round(MARGIN + (down - box.height * scale) / 2 - box.y * scale)
	};
}

/** @type {Fn.overlap} */
export function overlap(a, b) {
	return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}
