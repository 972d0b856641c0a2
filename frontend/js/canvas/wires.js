/** Wires, as curves of one SVG layer below the nodes. */

import {typeAt} from "../graph/graph.js";
import {anchorAt, pathBetween} from "./geometry.js";

const SVG = "http://www.w3.org/2000/svg";

export class Wires {
	#layer;
	#app;
	/** @type {Map<string, {group: SVGGElement, paths: SVGPathElement[], seen: string}>} */
	#drawn = new Map();
	#loose = path("wire loose");

	/** @param {SVGSVGElement} layer @param {App} app */
	constructor(layer, app) {
		this.#layer = layer;
		this.#app = app;
		layer.append(this.#loose);
	}

	/** @type {Fn.wiresDraw} */
	draw(graph, selected) {
		for (const [id, {group}] of this.#drawn) {
			if (!(id in graph.wires)) {
				group.remove();
				this.#drawn.delete(id);
			}
		}
		const busy = new Set(this.#app.store.state.runs.filter(({phase}) => phase === "running").map(({sampler}) => sampler));
		for (const wire of Object.values(graph.wires)) {
			const drawn = this.#drawn.get(wire.id) ?? this.#add(wire);
			const type = typeAt(graph, wire.from, "out") ?? ""; // another wire's, in another graph
			const shape = pathBetween(anchorAt(graph, wire.from, "out"), anchorAt(graph, wire.to, "in"));
			const isSelected = wire.id === selected;
			const isBusy = busy.has(wire.to.node) || busy.has(wire.from.node);
			const seen = `${shape} ${type} ${isSelected} ${isBusy}`;
			if (drawn.seen !== seen) {
				drawn.seen = seen;
				drawn.paths.forEach(each => each.setAttribute("d", shape));
				Object.assign(drawn.group.dataset, {type, selected: isSelected, busy: isBusy});
			}
		}
	}

	/** A wire whose one end is at the pointer; null: none. @type {Fn.drawLoose} */
	drawLoose(loose) {
		this.#loose.setAttribute("d", loose ? pathBetween(loose.from, loose.to) : "");
		this.#loose.dataset.type = loose?.type ?? "";
	}

	/** @type {Fn.wiresAdd} */
	#add(wire) {
		const group = document.createElementNS(SVG, "g");
		group.setAttribute("class", "wire-group");
		group.dataset.wire = wire.id;
		const paths = [path("wire-hit"), path("wire")];
		group.append(...paths);
		this.#layer.append(group);
		const drawn = {group, paths, seen: ""};
		this.#drawn.set(wire.id, drawn);
		return drawn;
	}
}

/** @param {string} name */
function path(name) {
	const element = document.createElementNS(SVG, "path");
	element.setAttribute("class", name);
	return element;
}
