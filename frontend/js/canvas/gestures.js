/**
 * Pointers on the canvas. One pointer does one thing at a time: it pans, drags nodes, drags a wire or
 * draws a box; two fingers zoom. What a pointer begins is an object with `move` and `end`.
 */

import * as commands from "../graph/commands.js";
import {typeAt, whyNoWire, wiresInto} from "../graph/graph.js";
import {NODE_TYPES, inputOf} from "../graph/table.js";
import {anchorAt, overlap, toWorld, zoomed} from "./geometry.js";
import {openConnect, openNodeMenu, openSearch} from "./menus.js";

/** Less than this is a click, px. */
const CLICK_PX = 4;
/** A wheel turns in larger steps than two fingers move, px. */
const WHEEL_STEP_PX = 40;
const OWN = "input, textarea, select, button, a, label, summary, canvas, .strip, .drop, .compare-stage, .examples";

/** @type {Fn.mountGestures} */
export function mountGestures({root, app, wires, lasso, boxOf, setCamera}) {
	const {store, editor} = app;
	/** @type {Map<number, Point>} */
	const pointers = new Map();
	/** @type {Gesture | null} */
	let gesture = null;
	let drags = 0;
	let isSpaceDown = false;

	const camera = () => app.camera.state.camera;
	/** @type {Fn.gesturesAt} */
	const at = ({clientX, clientY}) => {
		const {left, top} = root.getBoundingClientRect();
		return {x: clientX - left, y: clientY - top};
	};

	root.onpointerdown = event => {
		if (!(event.target instanceof Element) || event.target.closest(".canvas-tools, .minimap")) return;
		const point = at(event);
		pointers.set(event.pointerId, point);
		const begun = pointers.size === 2 ? pinch() : begin(event, event.target, point);
		if (!begun) return;
		if (pointers.size === 2) gesture?.cancel?.();
		else if (document.activeElement instanceof HTMLElement && !document.activeElement.contains(event.target)) document.activeElement.blur();
		gesture = begun;
		root.setPointerCapture(event.pointerId);
		event.preventDefault();
	};
	root.onpointermove = event => {
		if (pointers.has(event.pointerId)) {
			pointers.set(event.pointerId, at(event));
			gesture?.move(at(event), event);
		}
	};
	root.onpointerup = event => {
		if (!pointers.delete(event.pointerId)) return;
		const done = gesture;
		gesture = null; // a finger that stays behind does nothing
		if (pointers.size === 0) done?.end(at(event), event);
	};
	root.onpointercancel = event => {
		pointers.delete(event.pointerId);
		gesture?.cancel?.();
		gesture = null;
	};
	root.addEventListener("wheel", onWheel, {passive: false});
	root.ondblclick = event => {
		if (event.target instanceof Element && isGround(event.target)) searchAt(event);
	};
	root.oncontextmenu = event => {
		if (!(event.target instanceof Element) || event.target.matches("input, textarea")) return; // the browser's own menu, to paste
		event.preventDefault();
		const id = nodeAt(event.target);
		if (id === null) return searchAt(event);
		if (!store.state.selection.includes(id)) editor.select([id]);
		openNodeMenu(app, {at: {x: event.clientX, y: event.clientY}, boxOf});
	};
	// A click of the keyboard on a socket: what a drag does with the pointer.
	root.onclick = event => {
		const socket = event.target instanceof Element ? socketAt(event.target) : null;
		if (socket && event.detail === 0) connectList(socket);
	};
	// What scrolls a page would carry the view to the end of its space.
	root.onkeydown = event => {
		const {key, target} = event;
		const scrolls = /^(Page|Home|End)/.test(key) || (key === " " && target instanceof HTMLAnchorElement);
		if (scrolls && target instanceof Element && !target.matches("input, select, textarea")) event.preventDefault();
	};
	document.addEventListener("keydown", event => (isSpaceDown ||= event.code === "Space" && document.activeElement === document.body));
	document.addEventListener("keyup", event => (isSpaceDown &&= event.code !== "Space"));

	/** @type {Fn.searchAt} */
	function searchAt(event, end) {
		openSearch(app, {at: {x: event.clientX, y: event.clientY}, place: toWorld(camera(), at(event)), end});
	}

	/** @type {Fn.begin} */
	function begin(event, target, point) {
		if (event.button === 1 || (isSpaceDown && event.button === 0)) return pan(point);
		if (event.button !== 0) return null;
		const socket = socketAt(target);
		if (socket) return dragWire(socket, point);
		const id = nodeAt(target);
		if (id) return target.closest(OWN) ? null : dragNodes(id, point, event);
		const wire = target.closest("[data-wire]")?.getAttribute("data-wire");
		if (!wire) return isMore(event) ? drawBox(point, event) : pan(point, () => editor.select([]));
		store.set({selectedWire: wire, selection: []});
		return pan(point);
	}

	/** @type {Fn.pan} */
	function pan(start, onClick = () => {}) {
		const {x, y, scale} = camera();
		const cancel = () => void delete root.dataset.gesture;
		root.dataset.gesture = "pan";
		return {
			move: point => setCamera({scale, x: x + point.x - start.x, y: y + point.y - start.y}),
			end: point => {
				cancel();
				if (distance(point, start) < CLICK_PX) onClick();
			},
			cancel
		};
	}

	/** @returns {Gesture} */
	function pinch() {
		let [a, b] = [...pointers.values()];
		const move = () => {
			const [now, other] = [...pointers.values()];
			if (!a || !b || !now || !other) return;
			const before = middle(a, b);
			const after = middle(now, other);
			const moved = {...camera(), x: camera().x + after.x - before.x, y: camera().y + after.y - before.y};
			setCamera(zoomed(moved, after, distance(now, other) / Math.max(1, distance(a, b))));
			[a, b] = [now, other];
		};
		return {move, end: () => {}};
	}

	/** @type {Fn.dragNodes} */
	function dragNodes(id, start, event) {
		const {selection} = store.state;
		if (isMore(event)) editor.select(selection.includes(id) ? selection.filter(other => other !== id) : [...selection, id]);
		else if (!selection.includes(id)) editor.select([id]);
		const nodes = store.state.selection.flatMap(name => editor.graph.nodes[name] ?? []);
		const series = `drag ${++drags}`;
		let isMoved = false;
		return {
			move: point => {
				isMoved ||= distance(point, start) >= CLICK_PX;
				if (!isMoved) return;
				const [dx, dy] = [(point.x - start.x) / camera().scale, (point.y - start.y) / camera().scale];
				const moved = nodes.map(({id: name, x, y}) => [name, {x: x + dx, y: y + dy}]);
				editor.do(commands.moveNodes(editor.graph, Object.fromEntries(moved), series));
			},
			end: () => {
				editor.endSeries();
				if (isMoved) return;
				if (!isMore(event)) editor.select([id]);
				const node = root.querySelector(`.node[data-node="${id}"]`);
				if (node instanceof HTMLElement) node.focus({preventScroll: true});
			}
		};
	}

	/** @type {Fn.drawBox} */
	function drawBox(start, event) {
		const before = event.shiftKey ? store.state.selection : [];
		const cancel = () => void (lasso.hidden = true);
		return {
			move: point => {
				const {x, y, width, height} = boxBetween(start, point);
				lasso.hidden = false;
				Object.assign(lasso.style, {transform: `translate(${x}px, ${y}px)`, width: `${width}px`, height: `${height}px`});
				const box = boxBetween(toWorld(camera(), start), toWorld(camera(), point));
				const inside = Object.keys(editor.graph.nodes).filter(id => overlap(boxOf(id), box));
				editor.select([...new Set([...before, ...inside])]);
			},
			end: cancel,
			cancel
		};
	}

	/** @type {Fn.dragWire} */
	function dragWire(socket, start) {
		const {end, side} = socket;
		const kind = editor.graph.nodes[end.node]?.kind ?? "note";
		const held = side === "in" && !inputOf(kind, end.socket)?.many ? wiresInto(editor.graph, end.node, end.socket)[0] : undefined;
		/** @type {SocketEnd} */
		const fixed = held ? {end: held.from, side: "out"} : socket;
		const type = typeAt(editor.graph, fixed.end, fixed.side) ?? "text";
		/** @type {Fn.ordered} */
		const ordered = other => (fixed.side === "out" ? [fixed.end, other] : [other, fixed.end]);
		let isMoved = false;
		const clean = () => {
			wires.drawLoose(null);
			delete root.dataset.wiring;
			markFitting(null, type);
		};
		return {
			move: (point, event) => {
				if (!isMoved && distance(point, start) < CLICK_PX) return;
				if (!isMoved) markFitting(fixed, type);
				isMoved = true;
				root.dataset.wiring = type;
				const target = targetAt(event, fixed, type);
				const anchor = anchorAt(editor.graph, fixed.end, fixed.side);
				const loose = target ? anchorAt(editor.graph, target, fixed.side === "out" ? "in" : "out") : toWorld(camera(), point);
				wires.drawLoose({...(fixed.side === "out" ? {from: anchor, to: loose} : {from: loose, to: anchor}), type});
			},
			end: (_, event) => {
				clean();
				const target = isMoved ? targetAt(event, fixed, type) : null;
				if (!isMoved) connectList(socket);
				else if (target) {
					const [from, to] = ordered(target);
					const isSame = held && held.to.node === to.node && held.to.socket === to.socket;
					editor.do(
						commands.together("connect", editor.graph, [
							graph => (held && !isSame ? commands.disconnect(graph, [held.id]) : null),
							graph => commands.connect(graph, from, to)
						])
					);
				} else if (held) editor.do(commands.disconnect(editor.graph, [held.id]));
				else if (isGround(document.elementFromPoint(event.clientX, event.clientY) ?? root)) searchAt(event, {...fixed, type});
				else store.say("That socket takes something else.");
			},
			cancel: clean
		};
	}

	/** @type {Fn.targetAt} */
	function targetAt(event, fixed, type) {
		const element = document.elementFromPoint(event.clientX, event.clientY);
		const id = element && nodeAt(element);
		const node = id ? editor.graph.nodes[id] : undefined;
		if (!element || !node) return null;
		const over = socketAt(element)?.end.socket;
		const sockets = NODE_TYPES[node.kind][fixed.side === "out" ? "inputs" : "outputs"];
		const first = sockets.find(({name}) => name === over) ?? sockets.find(socket => socket.type === type);
		if (!first) return null;
		const end = {node: node.id, socket: first.name};
		const [from, to] = fixed.side === "out" ? [fixed.end, end] : [end, fixed.end];
		return whyNoWire(editor.graph, from, to) ? null : end;
	}

	/** Sockets that a wire fits stand out. @type {Fn.markFitting} */
	function markFitting(fixed, type) {
		for (const socket of root.querySelectorAll(".socket")) {
			const fits = fixed !== null && socket.getAttribute("data-type") === type && socket.getAttribute("data-side") !== fixed.side;
			socket.toggleAttribute("data-fits", fits);
		}
	}

	/** @param {SocketEnd} socket */
	function connectList({end, side}) {
		const element = root.querySelector(`[data-node="${end.node}"] .socket[data-socket="${end.socket}"][data-side="${side}"]`);
		const type = typeAt(editor.graph, end, side);
		const node = editor.graph.nodes[end.node];
		if (!element || !type || !node) return;
		const {left, bottom} = element.getBoundingClientRect();
		const place = {x: node.x + (side === "out" ? NODE_TYPES[node.kind].width + 90 : -90), y: node.y + 60};
		openConnect(app, {end, side, type}, {x: left, y: bottom + 4}, place);
	}

	/** @param {WheelEvent} event */
	function onWheel(event) {
		const {target, deltaX, deltaY, deltaMode, ctrlKey, shiftKey} = event;
		if (!ctrlKey && target instanceof Element && target.closest(".canvas-tools, textarea:focus, select:focus")) return;
		event.preventDefault();
		const isWheel = deltaMode !== 0 || (deltaX === 0 && Math.abs(deltaY) >= WHEEL_STEP_PX && Number.isInteger(deltaY));
		if (ctrlKey || (isWheel && !shiftKey)) {
			const strength = ctrlKey && !isWheel ? 0.01 : 0.0016;
			setCamera(zoomed(camera(), at(event), Math.exp(-deltaY * (deltaMode ? 20 : 1) * strength)));
		} else {
			const [dx, dy] = shiftKey && !deltaX ? [deltaY, 0] : [deltaX, deltaY];
			setCamera({...camera(), x: camera().x - dx, y: camera().y - dy});
		}
	}
}

/** @param {MouseEvent} event */
const isMore = ({shiftKey, ctrlKey, metaKey}) => shiftKey || ctrlKey || metaKey;

/** @param {Element} target */
const isGround = target => !target.closest(".node, [data-wire], .canvas-tools, .minimap");

/** @type {Fn.socketAt} */
function socketAt(target) {
	const socket = target.closest(".socket");
	const node = socket && nodeAt(socket);
	const name = socket?.getAttribute("data-socket");
	return node && name ? {end: {node, socket: name}, side: socket.getAttribute("data-side") === "in" ? "in" : "out"} : null;
}

/** @param {Element} target */
const nodeAt = target => target.closest(".node")?.getAttribute("data-node") ?? null;

/** @type {Fn.distance} */
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

/** @type {Fn.middle} */
const middle = (a, b) => ({x: (a.x + b.x) / 2, y: (a.y + b.y) / 2});

/** @type {Fn.boxBetween} */
function boxBetween(a, b) {
	return {x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y)};
}
