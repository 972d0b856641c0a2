/** The Mask node: what is painted over is drawn anew. White on black, as large as the picture. */

import {button, make} from "../dom.js";
import {keepAsset, readAsset} from "../assets.js";
import {originOf} from "../graph/plan.js";
import {showSource, whyNotUsed} from "./pictures.js";
import {field, rangeField, watchValue} from "./fields.js";

/** @type {MountNode} */
export function mountMask(body, context) {
	const picture = make("img", {alt: ""});
	const surface = make("canvas", {"aria-label": "Paint the mask here", role: "img"});
	const hint = make("p.hint", "Give this node an Image input, then paint on it");
	const pen = surface.getContext("2d", {willReadFrequently: true});

	context.watch(state => [sourceOf(state)], source => {
		hint.hidden = Boolean(source);
		picture.hidden = surface.hidden = !source;
		void showSource(picture, context.app, source);
	});
	picture.onload = () => {
		const {naturalWidth: width, naturalHeight: height} = picture;
		if (surface.width !== width || surface.height !== height) {
			Object.assign(surface, {width, height});
			void restore(context.node().values.mask);
		}
	};
	watchValue(context, "mask", mask => void restore(mask));

	surface.onpointerdown = event => {
		if (event.button === 0) {
			event.stopPropagation();
			surface.setPointerCapture(event.pointerId);
			paint(event);
		}
	};
	surface.onpointermove = event => {
		if (surface.hasPointerCapture(event.pointerId)) paint(event);
	};
	surface.onpointerup = save;
	body.append(
		field(context, {name: "mask", label: "Mask", control: make("div.drop.paint", picture, surface, hint), wide: true}),
		rangeField(context, {name: "brush", label: "Brush, px"}),
		make("div.row", button({label: "Clear the mask", words: "Clear", act: () => context.set({mask: null})})),
		whyNotUsed(context, "mask")
	);

	/** @type {Fn.paint} */
	function paint({clientX, clientY}) {
		if (!pen) return;
		const {left, top, width} = surface.getBoundingClientRect();
		const scale = surface.width / width;
		pen.fillStyle = "#fff";
		pen.beginPath();
		pen.arc((clientX - left) * scale, (clientY - top) * scale, Number(context.node().values.brush) / 2, 0, 2 * Math.PI);
		pen.fill();
	}

	async function save() {
		const {width, height} = surface;
		const flat = make("canvas", {width, height});
		const ink = flat.getContext("2d");
		if (!ink || !width) return;
		ink.fillRect(0, 0, width, height);
		ink.drawImage(surface, 0, 0);
		const blob = await new Promise((/** @type {(blob: Blob | null) => void} */ resolve) => flat.toBlob(resolve));
		if (blob) {
			context.set({mask: await keepAsset(blob)});
			context.app.editor.endSeries();
		}
	}

	/** White of the file onto a clear surface. @param {unknown} name */
	async function restore(name) {
		const blob = typeof name === "string" && (await readAsset(name));
		const bitmap = blob && (await createImageBitmap(blob));
		const {width, height} = surface;
		if (!pen || !width || name !== context.node().values.mask) return; // another by now
		pen.clearRect(0, 0, width, height);
		if (!bitmap) return;
		pen.drawImage(bitmap, 0, 0, width, height);
		const pixels = pen.getImageData(0, 0, width, height);
		for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = Number(pixels.data[i]);
		pen.putImageData(pixels, 0, 0);
	}

	/** @param {State} state */
	function sourceOf({document, shown}) {
		const origin = originOf(document.graph, context.id, "image");
		const last = origin?.kind === "sampler" && shown[origin.id];
		return String((last ? last.job.result?.images[last.index]?.id : origin?.values.image) ?? "");
	}
}
