/** Places for nodes: columns from left to right, in the direction of the wires. */

import {inOrder, wiresInto, wiresOutOf} from "./graph.js";

const COLUMN_GAP = 72;
const ROW_GAP = 32;
const ROW_WIDTH = 1200;

/** @type {Fn.arranged} */
export function arranged(graph, sizeOf) {
	const isWired = (/** @type {string} */ id) => wiresInto(graph, id).length + wiresOutOf(graph, id).length > 0;
	/** @type {Record<string, Point>} */
	const places = {};
	let [x, right, bottom] = [0, 0, 0];
	for (const ids of columnsOf(graph).map(column => column.filter(isWired))) {
		let [y, widest] = [0, 0];
		for (const id of ids) {
			const {width, height} = sizeOf(id);
			places[id] = {x, y};
			y += height + ROW_GAP;
			widest = Math.max(widest, width);
		}
		x += ids.length ? widest + COLUMN_GAP : 0;
		[right, bottom] = [Math.max(right, x), Math.max(bottom, y)];
	}
	// What is not wired lies below, in rows as wide as the rest.
	let [place, highest] = [0, 0];
	for (const {id} of inOrder(graph).filter(node => !isWired(node.id))) {
		const {width, height} = sizeOf(id);
		if (place > 0 && place + width > Math.max(right, ROW_WIDTH)) {
			bottom += highest + ROW_GAP;
			[place, highest] = [0, 0];
		}
		places[id] = {x: place, y: bottom};
		place += width + ROW_GAP;
		highest = Math.max(highest, height);
	}
	return places;
}

/** Each node as far right as it must be, and its sources as near to it as they can. @param {Graph} graph */
function columnsOf(graph) {
	/** @type {Map<string, number>} */
	const depth = new Map();
	const at = (/** @type {string} */ id) => depth.get(id) ?? 0;
	const order = inOrder(graph).map(({id}) => id);
	for (const id of order) depth.set(id, Math.max(0, ...wiresInto(graph, id).map(({from}) => at(from.node) + 1)));
	for (const id of order.toReversed()) {
		const next = wiresOutOf(graph, id).map(({to}) => at(to.node));
		if (next.length) depth.set(id, Math.max(at(id), Math.min(...next) - 1));
	}
	/** @type {string[][]} */
	const columns = Array.from({length: Math.max(0, ...depth.values()) + 1}, () => []);
	for (const id of order) columns[at(id)]?.push(id);
	return columns;
}

/** @type {Fn.around} */
export function around(boxes) {
	if (!boxes.length) return null;
	const x = Math.min(...boxes.map(box => box.x));
	const y = Math.min(...boxes.map(box => box.y));
	const right = Math.max(...boxes.map(box => box.x + box.width));
	const bottom = Math.max(...boxes.map(box => box.y + box.height));
	return {x, y, width: right - x, height: bottom - y};
}
