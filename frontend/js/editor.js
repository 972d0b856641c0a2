/** Edits of the graph, as commands that can be undone; what is selected; what was copied. */

import * as commands from "./graph/commands.js";
import {freeIds, newNode} from "./graph/graph.js";
import * as history from "./graph/history.js";

/** Keystrokes with less between them are undone together. */
const SERIES_MS = 1200;
const BESIDE_PX = 40;

export class Editor {
	#store;
	#lastSeries = "";
	#lastAt = 0;
	/** @type {Fragment} */
	#copied = {nodes: [], wires: []};
	#pastes = 0;

	/** @param {Store} store */
	constructor(store) {
		this.#store = store;
	}

	get graph() {
		return this.#store.state.document.graph;
	}

	/** @param {Command | null} command */
	do(command) {
		if (!command) return;
		const now = performance.now();
		const goesOn = command.series === this.#lastSeries && now - this.#lastAt < SERIES_MS;
		[this.#lastSeries, this.#lastAt] = [command.series, now];
		this.#set(history.perform(this.#store.state.document, command, goesOn));
	}

	undo() {
		const last = this.#store.state.document.history.done.at(-1);
		this.endSeries();
		this.#set(history.undo(this.#store.state.document));
		this.#store.say(last ? `Undone: ${last.label}.` : "There is nothing to undo.");
	}

	redo() {
		const next = this.#store.state.document.history.undone.at(-1);
		this.endSeries();
		this.#set(history.redo(this.#store.state.document));
		this.#store.say(next ? `Done again: ${next.label}.` : "There is nothing to do again.");
	}

	/** The next edit begins a step of undo of its own. */
	endSeries() {
		this.#lastSeries = "";
	}

	/** Typing into one field is one series. @type {EditorFn.setValues} */
	setValues(id, values) {
		this.do(commands.setValues(this.graph, id, values, `${id} ${Object.keys(values).join(" ")}`));
		const {faults} = this.#store.state;
		const before = Object.entries(faults[id] ?? {});
		const rest = before.filter(([field]) => !(field in values) && !((ALSO_AT[field] ?? field) in values));
		if (rest.length < before.length) this.#store.set({faults: {...faults, [id]: Object.fromEntries(rest)}});
	}

	/** @type {EditorFn.add} */
	add(kind, place, values) {
		const node = newNode(freeIds(this.graph, "nodes")(), kind, place, values);
		this.do(commands.addNode(node));
		this.select([node.id]);
		return node;
	}

	/** @type {EditorFn.replace} */
	replace(graph, label, workflow = "") {
		this.do(commands.replaceAll(this.graph, graph, label));
		this.endSeries();
		// What the nodes of the graph before have drawn is not these ones', though their ids may be the same.
		this.#store.set({workflow, selection: [], selectedWire: null, faults: {}, shown: {}, toShow: {}});
	}

	/** @param {readonly string[]} ids */
	select(ids) {
		this.#store.set({selection: ids, selectedWire: null});
	}

	/** The selected nodes, or the selected wire. */
	deleteSelected() {
		const {selection, selectedWire} = this.#store.state;
		this.do(selectedWire ? commands.disconnect(this.graph, [selectedWire]) : commands.removeNodes(this.graph, selection));
	}

	copy() {
		this.#copied = commands.copy(this.graph, this.#store.state.selection);
		this.#pastes = 0;
		return this.#copied.nodes.length;
	}

	paste() {
		this.#pastes += 1;
		const by = BESIDE_PX * this.#pastes;
		this.#put(commands.paste(this.graph, this.#copied, {x: by, y: by}));
	}

	duplicate() {
		this.#put(commands.duplicate(this.graph, this.#store.state.selection, {x: BESIDE_PX, y: BESIDE_PX}));
	}

	/** @type {EditorFn.put} */
	#put(put) {
		if (put) {
			this.do(put.command);
			this.select(put.ids);
		}
	}

	/** @param {Doc} document */
	#set(document) {
		const {nodes, wires} = document.graph;
		const {selection, selectedWire} = this.#store.state;
		this.#store.set({
			document,
			selection: selection.every(id => id in nodes) ? selection : selection.filter(id => id in nodes),
			selectedWire: selectedWire && selectedWire in wires ? selectedWire : null
		});
	}
}

/** A fault of the request's field may stand at a value with another name. @type {Readonly<Record<string, string>>} */
const ALSO_AT = {prompt: "text", negative_prompt: "text", loras: "name", reference_images: "images"};
