/** The Compare node: two pictures over each other, beside each other, or their difference; and how far they are apart. */

import {button, make} from "../dom.js";
import {duration, messageOf, precision, runStatus, runStep} from "../format.js";
import {readAsset, isAsset} from "../assets.js";
import {differenceMap, psnr, ssim} from "../graph/difference.js";
import {originOf} from "../graph/plan.js";
import {isOpen, runOf} from "../runs.js";
import {segments, watchValue} from "./fields.js";

const SOCKETS = ["a", "b"];

/** @type {MountNode} */
export function mountCompare(body, context) {
	const {app} = context;
	const a = make("canvas.side-a", {role: "img"});
	const b = make("canvas.side-b", {role: "img"});
	const map = make("canvas.side-map", {role: "img", "aria-label": "Difference map: black where the pictures agree"});
	const labels = [make("span.side-name"), make("span.side-name.right")];
	const slider = make("input.cut", {type: "range", min: 0, max: 100, value: 50, step: 0.5, "aria-label": "How much of A is seen"});
	const hint = make("p.placeholder");
	const stage = make("div.compare-stage", b, a, map, slider, ...labels, hint);
	const choices = Object.entries({slider: "Slider", side: "Side by side", difference: "Difference"}).map(([value, words]) => ({value, words}));
	const view = segments(context, {name: "view", label: "How to compare", choices});
	const figures = make("dl.figures");
	const large = button({label: "Look at the comparison closely", icon: "expand", kind: "bare", act: () => app.store.set({compared: context.id})});
	slider.oninput = () => stage.style.setProperty("--cut", `${slider.value}%`);
	watchValue(context, "view", value => void (stage.dataset.view = String(value)));
	body.append(make("div.row.apart", view, large), stage, figures);

	const sides = (/** @type {State} */ state) => SOCKETS.flatMap(socket => sideOf(app, state, context.id, socket) ?? []);
	/** The pair that is drawn, or being drawn. */
	let drawn = "";
	context.watch(
		state => [
			sides(state)
				.map(({key}) => key)
				.join(" | "),
			waitingFor(state)
		],
		(key, waiting) => {
			const [first, second] = sides(app.store.state);
			const isComplete = first !== undefined && second !== undefined;
			hint.hidden = isComplete;
			hint.textContent = waiting;
			stage.dataset.complete = String(isComplete);
			figures.hidden = !isComplete;
			if (isComplete && key !== drawn) {
				drawn = key;
				void draw(first, second, key);
			}
		}
	);

	/** @type {Fn.compareDraw} */
	async function draw(first, second, key) {
		try {
			const [one, two] = await Promise.all([pixelsOf(first), pixelsOf(second)]);
			if (key !== drawn) return; // another pair has come meanwhile
			put(a, one);
			put(b, two);
			[first, second].forEach(({label}, index) => {
				[a, b][index]?.setAttribute("aria-label", `${"AB"[index]}: ${label}`);
				labels[index]?.replaceChildren(label);
			});
			stage.style.setProperty("--ratio", String(one.width / one.height));
			const isSameSize = one.width === two.width && one.height === two.height;
			if (isSameSize) put(map, differenceMap(one, two));
			const db = isSameSize ? psnr(one, two) : 0;
			const distance = isSameSize
				? {PSNR: db === Infinity ? "∞ dB (equal)" : `${db.toFixed(2)} dB`, SSIM: ssim(one, two).toFixed(4)}
				: {PSNR: "the sizes differ"};
			const costs = [first, second].flatMap(({label, result, memory}) =>
				result ? [[label, `${duration(result.generation_time_ms - (result.timings_ms.load ?? 0))}${memory === null ? "" : ` · ${(memory / 1024).toFixed(1)} GiB`}`]] : []
			);
			figures.replaceChildren(...[...Object.entries(distance), ...costs].map(([name = "", value = ""]) => make("div", make("dt", name), make("dd", value))));
		} catch (error) {
			drawn = "";
			hint.hidden = false;
			hint.textContent = `The pictures were not read: ${messageOf(error)}.`;
		}
	}

	/** @param {State} state */
	function waitingFor(state) {
		for (const socket of SOCKETS) {
			const name = socket.toUpperCase();
			const origin = originOf(state.document.graph, context.id, socket);
			const run = origin && runOf(state.runs, origin.id);
			if (!origin) return `Wire a picture to ${name}`;
			if (run && isOpen(run.phase)) return `${name}: ${runStatus(run)} ${runStep(run)}`;
			if (run?.error) return `${name}: ${run.error}`;
		}
		return "Run to see both pictures";
	}
}

/** @type {Fn.sideOf} */
function sideOf(app, state, nodeId, socket) {
	const origin = originOf(state.document.graph, nodeId, socket);
	const name = origin?.kind === "image-input" ? String(origin.values.image ?? "") : "";
	if (isAsset(name)) return {key: name, label: "Input", read: () => readAsset(name), result: null, memory: null};
	const shown = origin ? state.shown[origin.id] : undefined;
	const image = shown?.job.result?.images[shown.index];
	const run = origin && runOf(state.runs, origin.id);
	if (!shown || !image || (run && isOpen(run.phase))) return null;
	const {service, job} = shown;
	const workers = state.services[service]?.queue?.workers ?? [];
	return {
		key: `${service} ${image.id}`,
		label: `${precision(job.result?.precision ?? service)}, seed ${image.seed}`,
		read: async () => app.connections[service]?.ask(client => client.blob(image.image_url)) ?? null,
		result: job.result,
		memory: workers.find(({memory_mib}) => memory_mib !== null)?.memory_mib ?? null
	};
}

/** The very numbers of the file: no colour management. @param {Side} side */
async function pixelsOf(side) {
	const blob = await side.read();
	if (!blob) throw new Error("it is not there any more");
	const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
	const pen = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", {willReadFrequently: true});
	if (!pen) throw new Error("the browser cannot draw");
	pen.drawImage(bitmap, 0, 0);
	return pen.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** @type {Fn.comparePut} */
function put(canvas, {width, height, data}) {
	[canvas.width, canvas.height] = [width, height];
	canvas.getContext("2d")?.putImageData(new ImageData(new Uint8ClampedArray(data), width, height), 0, 0);
}
