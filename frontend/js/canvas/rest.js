/**
 * Of a graph of many nodes only those that can be read are whole: one out of sight, or too small for words, is a
 * frame with its title while what is in it rests. All of them at once would take many times a frame's time, so it
 * is a few in each frame, and none while the view is zoomed.
 */

import {onScreen, overlap} from "./geometry.js";

/** Fewer nodes are always whole. */
const MANY_NODES = 60;
/** Below this words are too small to read. */
const FAR_SCALE = 0.5;
/** Nodes this near are woken before they come into sight, px. */
const NEAR_PX = 160;
/** What a frame has time for. */
const WOKEN_A_FRAME = 3;
const RESTED_A_FRAME = 12;

/** @type {Fn.mountRest} */
export function mountRest({root, layer, app, boxOf, isZoomed}) {
	let isAsked = false;
	let wasNew = false;
	/** Worth a look however small; the lists are live. */
	const [images, stages] = [layer.getElementsByTagName("img"), layer.getElementsByClassName("compare-stage")];
	// What has the focus must be there.
	layer.addEventListener("focusin", ({target}) => {
		const node = target instanceof Element && target.closest(".node");
		if (node instanceof HTMLElement) delete node.dataset.resting;
	});
	return ask;

	function ask() {
		if (isAsked) return;
		isAsked = true;
		requestAnimationFrame(() => {
			isAsked = false;
			step();
		});
	}

	function step() {
		const nodes = /** @type {HTMLElement[]} */ ([...layer.children]);
		const isWhole = whole(nodes.length);
		const woken = nodes.filter(node => node.dataset.resting && isWhole(node));
		const rested = nodes.filter(node => !node.dataset.resting && !isWhole(node));
		const isNew = rested.length > nodes.length / 2; // a long frame anyway
		// A node that was never laid out would not keep its height.
		const isTooEarly = isNew && !wasNew;
		wasNew = isTooEarly;
		if (isTooEarly || (!isNew && isZoomed())) return ask();
		woken.slice(0, WOKEN_A_FRAME).forEach(({dataset}) => delete dataset.resting);
		rested.slice(0, isNew ? rested.length : RESTED_A_FRAME).forEach(({dataset}) => (dataset.resting = "true"));
		if (woken.length + rested.length) ask();
	}

	/** What holds for all nodes is asked once: a frame has no time for two hundred questions. @type {Fn.whole} */
	function whole(count) {
		if (count <= MANY_NODES) return () => true;
		const {camera} = app.camera.state;
		const near = {x: -NEAR_PX, y: -NEAR_PX, width: root.clientWidth + 2 * NEAR_PX, height: root.clientHeight + 2 * NEAR_PX};
		const focused = document.activeElement?.closest(".node");
		const pictures = [...images].filter(image => image.hasAttribute("src"));
		const complete = [...stages].filter(stage => stage.matches("[data-complete=true]"));
		const shown = new Set([...pictures, ...complete].map(element => element.closest(".node")));
		const isNear = (/** @type {HTMLElement} */ node) => overlap(onScreen(boxOf(node.dataset.node ?? ""), camera), near);
		return node => node === focused || (isNear(node) && (camera.scale >= FAR_SCALE || shown.has(node)));
	}
}
