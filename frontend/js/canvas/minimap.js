/** The whole graph, small, with the part that is seen. A click goes there. */

import {around} from "../graph/layout.js";
import {mainType} from "../graph/table.js";

const WIDTH = 168;
const HEIGHT = 104;
const MARGIN_PX = 8;
/** Seen from the corner of the eye: it need not move at every frame. */
const BETWEEN_MS = 80;

/** @type {Fn.mountMinimap} */
export function mountMinimap({canvas, root, app, boxOf, setCamera}) {
	const pen = canvas.getContext("2d");
	let view = {x: 0, y: 0, scale: 1};
	let isAsked = false;
	/** @type {Map<string, string>} */
	const colours = new Map();

	const go = (/** @type {PointerEvent} */ event) => {
		const {left, top} = canvas.getBoundingClientRect();
		const {scale} = app.camera.state.camera;
		const x = (event.clientX - left - view.x) / view.scale;
		const y = (event.clientY - top - view.y) / view.scale;
		setCamera({scale, x: root.clientWidth / 2 - x * scale, y: root.clientHeight / 2 - y * scale});
	};
	canvas.onpointerdown = event => {
		canvas.setPointerCapture(event.pointerId);
		go(event);
	};
	canvas.onpointermove = event => void (canvas.hasPointerCapture(event.pointerId) && go(event));

	const ask = () => {
		if (isAsked) return;
		isAsked = true;
		setTimeout(() => requestAnimationFrame(draw), BETWEEN_MS);
	};
	const repaint = () => {
		colours.clear();
		ask();
	};
	matchMedia("(prefers-color-scheme: light)").addEventListener("change", repaint);
	new MutationObserver(repaint).observe(document.documentElement, {attributeFilter: ["data-theme"]});
	return ask;

	/** @param {string} name */
	function colour(name) {
		if (!colours.has(name)) {
			canvas.style.color = `var(--${name})`;
			colours.set(name, getComputedStyle(canvas).color);
		}
		return colours.get(name) ?? "";
	}

	function draw() {
		isAsked = false;
		const {x, y, scale: now} = app.camera.state.camera;
		const nodes = Object.values(app.editor.graph.nodes);
		const seen = {x: -x / now, y: -y / now, width: root.clientWidth / now, height: root.clientHeight / now};
		const all = around([...nodes.map(({id}) => boxOf(id)), seen]);
		if (!pen || !all || !root.clientWidth) return;
		const ratio = devicePixelRatio;
		if (canvas.width !== WIDTH * ratio) [canvas.width, canvas.height] = [WIDTH * ratio, HEIGHT * ratio];
		const scale = Math.min((WIDTH - 2 * MARGIN_PX) / all.width, (HEIGHT - 2 * MARGIN_PX) / all.height);
		view = {scale, x: (WIDTH - all.width * scale) / 2 - all.x * scale, y: (HEIGHT - all.height * scale) / 2 - all.y * scale};
		pen.setTransform(ratio, 0, 0, ratio, 0, 0);
		pen.clearRect(0, 0, WIDTH, HEIGHT);
		const selected = new Set(app.store.state.selection);
		for (const {id, kind} of nodes) {
			const type = mainType(kind) ?? "muted";
			pen.fillStyle = colour(type === "text" ? "text-socket" : type);
			pen.globalAlpha = selected.has(id) ? 1 : 0.6;
			const box = boxOf(id);
			pen.fillRect(view.x + box.x * scale, view.y + box.y * scale, Math.max(2, box.width * scale), Math.max(2, box.height * scale));
		}
		pen.globalAlpha = 1;
		pen.strokeStyle = colour("accent");
		pen.strokeRect(view.x + seen.x * scale + 0.5, view.y + seen.y * scale + 0.5, seen.width * scale, seen.height * scale);
	}
}
