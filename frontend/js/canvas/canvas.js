/** The canvas: nodes in one transformed layer, wires in one SVG layer below them. */

import {button, find, keep, make} from "../dom.js";
import * as commands from "../graph/commands.js";
import {nodesOf} from "../graph/graph.js";
import {around, arranged} from "../graph/layout.js";
import {endFrame, frameOf, updateFrame} from "./frame.js";
import {HEAD, fitted, onScreen, overlap, toWorld, widthOf, zoomed} from "./geometry.js";
import {mountGestures} from "./gestures.js";
import {openSearch} from "./menus.js";
import {mountMinimap} from "./minimap.js";
import {mountRest} from "./rest.js";
import {Wires} from "./wires.js";

/** A view that is not zoomed any more is drawn sharp again after so many frames. */
const STILL_FRAMES = 15;
const DOTS_PX = 24;
const GUESSED_HEIGHT = 220;
/** Between the minimap and the nodes above it. */
const MAP_GAP = 12;
const ZOOM = 1.25;
/** A node that is dropped near the edge is seen whole. */
const DROPPED_PX = 450;
/** Of the space that is scrolled (`.space`): there the graph's origin is. */
const MIDDLE_PX = 4_000_000;

/** @type {Fn.mountCanvas} */
export function mountCanvas(app) {
	const {store, editor} = app;
	const root = find("#canvas");
	const world = find("#world");
	const view = find("#view");
	const dots = find("#dots");
	const grain = find("#dots > div");
	const layer = find("#nodes");
	const wires = new Wires(find("svg#wires"), app);
	/** @type {Map<string, number>} */
	const heights = new Map();
	let untilStill = 0;
	/** At which the elements are shown. */
	let drawnScale = NaN;
	/** As everything was last fitted into the view. @type {Camera | null} */
	let fittedCamera = null;
	/** Where the view was scrolled to. */
	let [left, top] = [0, 0];
	/** What the elements show. @type {WeakMap<HTMLElement, GraphNode>} */
	const drawnNodes = new WeakMap();
	/** @type {Graph["wires"] | null} */
	let drawnWires = null;

	const observer = new ResizeObserver(entries => {
		for (const {target} of entries) {
			if (target instanceof HTMLElement && target.isConnected) heights.set(target.dataset.node ?? "", target.offsetHeight);
		}
		drawMinimap();
	});
	/** @type {Fn.boxOf} */
	const boxOf = id => {
		const node = editor.graph.nodes[id];
		const height = node?.collapsed ? HEAD : (heights.get(id) ?? GUESSED_HEIGHT);
		return {x: node?.x ?? 0, y: node?.y ?? 0, width: node ? widthOf(node) : 0, height};
	};
	const camera = () => app.camera.state.camera;
	const setCamera = (/** @type {Camera} */ now) => app.camera.set({camera: now});
	const rest = mountRest({root, layer, app, boxOf, isZoomed: () => untilStill > 0});
	const map = find("canvas#minimap");
	const drawMinimap = mountMinimap({canvas: map, root, app, boxOf, setCamera});
	mountGestures({root, app, wires, lasso: find("#lasso"), boxOf, setCamera});

	const middle = () => ({x: root.clientWidth / 2, y: root.clientHeight / 2});
	/** @type {Canvas} */
	const canvas = {
		element: root,
		boxOf,
		fit() {
			for (const element of elements()) heights.set(element.dataset.node ?? "", element.offsetHeight); // not told yet
			const ids = store.state.selection.length > 1 ? store.state.selection : Object.keys(editor.graph.nodes);
			const box = around(ids.map(boxOf));
			if (!box || !root.clientWidth) return;
			const room = {width: root.clientWidth, height: root.clientHeight};
			const now = fitted(box, room);
			const isBelowMap = ids.some(id => overlap(onScreen(boxOf(id), now), mapBox()));
			fittedCamera = isBelowMap ? fitted(box, room, room.height - mapBox().y + MAP_GAP) : now;
			setCamera(fittedCamera);
		},
		zoom: factor => setCamera(zoomed(camera(), middle(), factor)),
		actualSize: () => canvas.zoom(1 / camera().scale),
		arrange() {
			editor.do(commands.moveNodes(editor.graph, arranged(editor.graph, boxOf)));
			canvas.fit();
		},
		search() {
			const {left, top} = root.getBoundingClientRect();
			const {x, y} = {x: middle().x - 140, y: middle().y - 160};
			openSearch(app, {at: {x: left + x, y: top + y}, place: toWorld(camera(), {x, y})});
		},
		placeOf({clientX, clientY}) {
			const {left, top} = root.getBoundingClientRect();
			const {clientWidth, clientHeight} = root;
			const within = (/** @type {number} */ at, /** @type {number} */ end) => Math.max(0, Math.min(at, end - DROPPED_PX * camera().scale));
			return toWorld(camera(), {x: within(clientX - left, clientWidth), y: within(clientY - top, clientHeight)});
		}
	};

	const scale = button({label: "Actual size", words: "100 %", kind: "bare scale", act: canvas.actualSize});
	/** @type {Fn.canvasTool} */
	const tool = (label, icon, act) => button({label, icon, kind: "bare", act});
	find("#canvas-tools").append(
		tool("Add a node", "plus", canvas.search),
		make("span.gap"),
		tool("Zoom out", "minus", () => canvas.zoom(1 / ZOOM)),
		scale,
		tool("Zoom in", "zoom", () => canvas.zoom(ZOOM)),
		tool("Fit everything", "fit", canvas.fit),
		tool("Arrange", "arrange", canvas.arrange),
		make("span.gap"),
		tool("Undo", "undo", () => editor.undo()),
		tool("Redo", "redo", () => editor.redo())
	);

	// Written only where it changes. A view that moves is scrolled: nothing is laid out or painted.
	const drawCamera = onceAFrame(() => {
		const {x, y, scale: now} = camera();
		// Between 0.7 and 1.4 of their size: the pattern looks the same at half and at twice the scale.
		const grid = now / 2 ** Math.round(Math.log2(now));
		const tile = DOTS_PX * grid;
		// First: after a change of style the browser would have to lay out before it scrolls.
		[left, top] = [MIDDLE_PX - Math.round(x), MIDDLE_PX - Math.round(y)];
		view.scrollTo(left, top);
		dots.scrollTo(tile - (((x % tile) + tile) % tile), tile - (((y % tile) + tile) % tile));
		if (now !== drawnScale) {
			drawnScale = now;
			grain.style.transform = `scale(${grid})`;
			if (!untilStill) whileMoving();
			untilStill = STILL_FRAMES;
			world.style.transform = `scale(${now})`;
			scale.textContent = `${Math.round(now * 100)} %`;
			scale.ariaLabel = `${scale.textContent}: actual size`;
		}
		drawMinimap();
		rest();
	});
	// A browser scrolls what has the focus into view: what it moved by, the camera moves too.
	view.onscroll = () => {
		const [dx, dy] = [view.scrollLeft - left, view.scrollTop - top];
		if (view.clientWidth && Math.max(Math.abs(dx), Math.abs(dy)) > 1) setCamera({...camera(), x: camera().x - dx, y: camera().y - dy});
	};
	app.camera.watch(({camera: now}) => [now], drawCamera);
	store.watch(({document, view}) => [document.graph, view], (graph, view) => {
		root.hidden = view !== "canvas";
		const nodes = view === "canvas" ? nodesOf(graph) : [];
		find("#canvas-empty").hidden = nodes.length > 0;
		const stay = new Set(nodes.map(({id}) => id));
		for (const element of elements()) {
			const key = element.dataset.key ?? "";
			const isOther = editor.graph.nodes[key]?.kind !== element.dataset.kind;
			if (!stay.has(key) || isOther) {
				endFrame(element);
				observer.unobserve(element);
				heights.delete(key);
				if (isOther) delete element.dataset.key; // another node under the same id
			}
		}
		const isRewired = graph.wires !== drawnWires;
		drawnWires = graph.wires;
		keep(layer, nodes, ({id}) => id, create, (element, node) => {
			if (isRewired || drawnNodes.get(element) !== node) {
				drawnNodes.set(element, node);
				updateFrame(app, element, node);
			}
		});
		wires.draw(graph, store.state.selectedWire);
		drawMinimap();
		rest();
	});
	store.watch(({selection, selectedWire}) => [selection, selectedWire], (selection, selectedWire) => {
		for (const element of elements()) element.dataset.selected = String(selection.includes(element.dataset.node ?? ""));
		wires.draw(editor.graph, selectedWire);
		drawMinimap();
	});
	const drawBusy = onceAFrame(() => {
		wires.draw(editor.graph, store.state.selectedWire);
		const busy = new Set(store.state.runs.filter(({phase}) => phase === "running").map(({sampler}) => sampler));
		for (const element of elements()) element.dataset.busy = String(busy.has(element.dataset.node ?? ""));
		rest();
	});
	store.watch(({runs}) => [runs.map(({phase, sampler}) => `${sampler} ${phase}`).join()], drawBusy);
	new ResizeObserver(() => {
		// A view that nobody has moved stays fitted when a panel opens beside it.
		if (camera() === fittedCamera) canvas.fit();
		drawMinimap();
	}).observe(root);
	return canvas;

	/** Where the minimap lies over the nodes; nowhere when it is not shown. @returns {Box} */
	function mapBox() {
		const {offsetLeft: x, offsetTop: y, offsetWidth: width, offsetHeight: height} = map;
		return width ? {x, y, width, height} : {x: -1, y: root.clientHeight, width: 0, height: 0};
	}

	function elements() {
		return /** @type {HTMLElement[]} */ ([...layer.children]);
	}

	/** @param {GraphNode} node */
	function create(node) {
		const element = frameOf(app, node);
		observer.observe(element);
		return element;
	}

	/** Frames, not time: on a slow machine drawing sharp between two steps would make it slower yet. */
	function whileMoving() {
		if (!world.dataset.moving) world.dataset.moving = "true";
		requestAnimationFrame(() => (--untilStill > 0 ? whileMoving() : delete world.dataset.moving));
	}
}

/** Pointer events come more often than pictures: what is asked for several times is done once before the next. @param {() => void} act */
function onceAFrame(act) {
	let isAsked = false;
	return () => {
		if (isAsked) return;
		isAsked = true;
		requestAnimationFrame(() => {
			isAsked = false;
			act();
		});
	};
}
