/** Edits of the graph, as commands that can be undone; what is selected; what was copied. */

import * as commands from "./graph/commands.js";
import {freeIds, newNode, nodesOf, wiresInto, wiresOf} from "./graph/graph.js";
import * as history from "./graph/history.js";
import {mainSampler} from "./graph/plan.js";
import {parse, serialise} from "./graph/workflow.js";
import {randomHex} from "./random.js";

/** Keystrokes with less between them are undone together. */
const SERIES_MS = 1200;
const BESIDE_PX = 40;
const BELOW_PX = 400;

/** @type {Fn.newEditor} */
export function newEditor(store) {
	let lastSeries = "";
	let lastAt = 0;
	/** What was pasted last, and how often. */
	let [pasted, pastes] = ["", 0];
	/** Stands before the samplers of runs when another graph has taken the place of theirs. */
	let tag = randomHex(4);
	/** The tags and names of such graphs. @type {WeakMap<Command, {tag: string, workflow: string}>} */
	const replaced = new WeakMap();
	addEventListener("pointerdown", () => (lastSeries = ""), true); // two clicks are two steps, however quick
	/** @type {Editor} */
	const own = {
		get graph() {
			return store.state.document.graph;
		},

		do(command) {
			if (!command) return;
			const now = performance.now();
			const goesOn = command.series === lastSeries && now - lastAt < SERIES_MS;
			[lastSeries, lastAt] = [command.series, now];
			set(history.perform(store.state.document, command, goesOn));
		},

		undo: () => step("done", history.undo, "Undone", "undo"),
		redo: () => step("undone", history.redo, "Done again", "do again"),

		endSeries() {
			lastSeries = "";
		},

		setValues(id, values) {
			own.do(commands.setValues(own.graph, id, values, `${id} ${Object.keys(values).join(" ")}`));
			const {faults} = store.state;
			const before = Object.entries(faults[id] ?? {});
			const rest = before.filter(([field]) => !(field in values) && !((ALSO_AT[field] ?? field) in values));
			if (rest.length < before.length) store.set({faults: {...faults, [id]: Object.fromEntries(rest)}});
		},

		add(kind, place, values) {
			const node = newNode(freeIds(own.graph, "nodes")(), kind, place, values);
			own.do(commands.addNode(node));
			own.select([node.id]);
			return node;
		},

		replace(graph, label, workflow = "") {
			const command = commands.replaceAll(own.graph, graph, label);
			exchange(command, {tag: randomHex(4), workflow});
			own.do(command);
			own.endSeries();
			store.set({selection: [], selectedWire: null, faults: {}, toShow: {}});
		},

		select(ids) {
			store.set({selection: ids, selectedWire: null});
		},

		deleteSelected() {
			const {selection, selectedWire} = store.state;
			own.do(selectedWire ? commands.disconnect(own.graph, [selectedWire]) : commands.removeNodes(own.graph, selection));
		},

		useAsInput(image, place) {
			const {graph} = own;
			const sampler = mainSampler(graph);
			const there = sampler && wiresInto(graph, sampler.id, "image")[0]?.from.node;
			if (!place && there && graph.nodes[there]?.kind === "image-input") return own.setValues(there, {image});
			const below = () => Math.max(0, ...nodesOf(graph).map(({y}) => y)) + BELOW_PX;
			const node = newNode(freeIds(graph, "nodes")(), "image-input", place ?? {x: (sampler?.x ?? 0) - BELOW_PX, y: below()}, {image});
			const wires = place && there ? [] : commands.feeding(graph, node.id, sampler ? [sampler.id] : []);
			own.do(commands.together("add Image input", graph, [() => commands.addNode(node), ...wires]));
			own.select([node.id]);
		},

		copied() {
			const {graph} = own;
			const {selection} = store.state;
			const others = commands.removeNodes(graph, Object.keys(graph.nodes).filter(id => !selection.includes(id)));
			return selection.length ? JSON.stringify(serialise(others ? commands.execute(graph, others) : graph, "")) : "";
		},

		paste(text) {
			const {graph} = parse(JSON.parse(text));
			[pasted, pastes] = [text, text === pasted ? pastes + 1 : 1];
			const by = BESIDE_PX * pastes;
			put(commands.paste(own.graph, {nodes: nodesOf(graph), wires: wiresOf(graph)}, {x: by, y: by}));
		},

		duplicate() {
			put(commands.duplicate(own.graph, store.state.selection, {x: BESIDE_PX, y: BESIDE_PX}));
		}
	};
	return own;

	/** @type {Fn.stepBy} */
	function step(from, by, words, verb) {
		const {document} = store.state;
		const command = document.history[from].at(-1);
		own.endSeries();
		set(by(document));
		const other = command && replaced.get(command);
		if (other) exchange(command, other);
		store.say(command ? `${words}: ${command.label}.` : `There is nothing to ${verb}.`);
	}

	/** @type {Fn.exchange} */
	function exchange(command, other) {
		const {runs, shown, workflow} = store.state;
		const moved = (/** @type {string} */ id) => (id.includes(":") ? id.replace(`${other.tag}:`, "") : `${tag}:${id}`);
		replaced.set(command, {tag, workflow});
		store.set({
			workflow: other.workflow,
			runs: runs.map(run => ({...run, sampler: moved(run.sampler), parts: run.parts.map(part => (part.run ? {...part, source: moved(part.source)} : part))})),
			shown: Object.fromEntries(Object.entries(shown).map(([id, each]) => [moved(id), each]))
		});
		tag = other.tag;
	}

	/** @type {Fn.editorPut} */
	function put(put) {
		if (put) {
			own.do(put.command);
			own.select(put.ids);
		}
	}

	/** @param {Doc} document */
	function set(document) {
		const {nodes, wires} = document.graph;
		const {selection, selectedWire} = store.state;
		store.set({
			document,
			selection: selection.every(id => id in nodes) ? selection : selection.filter(id => id in nodes),
			selectedWire: selectedWire && selectedWire in wires ? selectedWire : null
		});
	}
}

/** A fault of the request's field may stand at a value with another name. @type {Readonly<Record<string, string>>} */
const ALSO_AT = {prompt: "text", negative_prompt: "text", loras: "name", reference_images: "images"};
