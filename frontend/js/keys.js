/** Keys of the whole page. */

import {isTyping} from "./dom.js";
import * as commands from "./graph/commands.js";
import {togglePanel} from "./views/topbar.js";

const STEP_PX = 10;
/** @type {Readonly<Record<string, Point>>} */
const ARROWS = {ArrowLeft: {x: -1, y: 0}, ArrowRight: {x: 1, y: 0}, ArrowUp: {x: 0, y: -1}, ArrowDown: {x: 0, y: 1}};
/** @type {Readonly<Record<string, Panel>>} */
const PANEL_KEYS = {g: "gallery", l: "loras", q: "queue", m: "machine", w: "workflows"};

/** @type {Fn.mountKeys} */
export function mountKeys(app, canvas, openHelp) {
	const {store, editor, runs} = app;
	document.addEventListener("keydown", event => {
		if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
		const act = event.ctrlKey || event.metaKey ? commandKey(event) : event.altKey ? undefined : plainKey(event);
		if (act) {
			event.preventDefault();
			act();
		}
	});

	/** @type {Fn.commandKey} */
	function commandKey({key, shiftKey, target}) {
		const name = key.toLowerCase();
		if (name === "enter") return () => void runs.start();
		if (isTyping(target) && target instanceof Element && !target.closest("[data-node]")) return undefined; // a search field undoes by itself
		if (name === "y" || (name === "z" && shiftKey)) return () => editor.redo(); // of the whole graph: what is typed is a part of it
		if (name === "z") return () => editor.undo();
		if (isTyping(target) || store.state.view !== "canvas") return undefined;
		/** @type {Record<string, () => void>} */
		const acts = {
			a: () => editor.select(Object.keys(editor.graph.nodes)),
			d: () => editor.duplicate()
		};
		return acts[name];
	}

	/** @type {Fn.plainKey} */
	function plainKey({key, target, shiftKey}) {
		if (key === "Escape") return escape;
		if (isTyping(target)) return undefined;
		if (key === "?") return openHelp;
		if (key === "v") return () => store.set({view: store.state.view === "canvas" ? "form" : "canvas"});
		const panel = PANEL_KEYS[key];
		if (panel) return () => togglePanel(app, panel);
		return store.state.view === "canvas" ? canvasKey(key, target, shiftKey) : undefined;
	}

	function escape() {
		const {selection, selectedWire} = store.state;
		if (isTyping(document.activeElement) && document.activeElement instanceof HTMLElement) document.activeElement.blur();
		else if (selection.length || selectedWire) editor.select([]);
		else store.set({panel: null});
	}

	/** @type {Fn.canvasKey} */
	function canvasKey(key, target, isLarge) {
		const {selection, selectedWire} = store.state;
		const element = target instanceof Element ? target : null;
		const focused = element?.closest(".node")?.getAttribute("data-node");
		const moved = selection.length ? selection : focused ? [focused] : [];
		const nodes = moved.flatMap(id => editor.graph.nodes[id] ?? []);
		const arrow = ARROWS[key];
		if (arrow && moved.length && !element?.closest("input, [role=radiogroup], .panel")) {
			const by = isLarge ? 10 * STEP_PX : STEP_PX;
			const places = Object.fromEntries(nodes.map(({id, x, y}) => [id, {x: x + arrow.x * by, y: y + arrow.y * by}]));
			return () => editor.do(commands.moveNodes(editor.graph, places, `keys ${moved.join()}`));
		}
		if (key === "Delete" || key === "Backspace") {
			return selection.length || selectedWire ? () => editor.deleteSelected() : () => editor.do(commands.removeNodes(editor.graph, moved));
		}
		if ((key === " " || key === "Enter") && focused && element?.matches(".node")) {
			return () => editor.select(selection.includes(focused) ? selection.filter(id => id !== focused) : [...selection, focused]);
		}
		/** @type {Record<string, () => void>} */
		const acts = {
			a: canvas.search,
			f: canvas.fit,
			0: canvas.actualSize,
			"+": () => canvas.zoom(1.25),
			"=": () => canvas.zoom(1.25),
			"-": () => canvas.zoom(1 / 1.25),
			c: () => editor.do(commands.collapse(editor.graph, moved, !nodes.every(({collapsed}) => collapsed)))
		};
		return acts[key];
	}
}
