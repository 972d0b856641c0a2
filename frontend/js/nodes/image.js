/** The Image node: what happens to the run, the preview, then the picture. */

import {FIRST_SERVICE} from "../config.js";
import {button, keep, make} from "../dom.js";
import {duration, eta, failedWords, precision, runStatus, runStep, showProgress, size} from "../format.js";
import {originOf} from "../graph/plan.js";
import {modelOfSampler} from "../models.js";
import {clear, show} from "../pictures.js";
import {isOpen, runOf} from "../runs.js";
import {actionsFor} from "../views/actions.js";

/** A small picture is not blown up further than this. */
const LARGEST_SCALE = 3;

/** @type {MountNode} */
export function mountImage(body, context) {
	const {app} = context;
	const {store, runs} = app;
	const now = () => store.state;
	const stage = make("strong.run-stage");
	const step = make("span.run-step");
	const detail = make("p.run-detail");
	const bar = make("progress", {max: 1, value: 0, "aria-label": "Progress"});
	const cancel = button({words: "Cancel", act: () => void runs.cancel(runNow(now())?.key ?? "")});
	const again = button({words: "Try again", act: () => runs.retry(runNow(now())?.key ?? "")});
	const state = make("div.run", make("p.run-status", stage, step), make("div.run-buttons", cancel, again), bar, detail);

	const picture = make("img.picture-now", {alt: ""});
	const opener = make("button.picture", {"aria-label": "Look at the picture closely", hidden: true, onclick: look}, picture);
	const preview = make("img.preview", {alt: "How far the picture is", hidden: true});
	const ghost = make("div.ghost", {hidden: true});
	const placeholder = make("p.placeholder");
	const frame = make("div.frame", placeholder, ghost, opener, preview);
	const strip = make("div.strip", {role: "group", "aria-label": "Pictures of this run", hidden: true});
	const facts = make("p.facts-line");
	const actions = actionsFor(app, pictureNow, {compact: context.place === "canvas"});
	body.append(frame, strip, state, facts, actions.row);

	picture.onerror = () => {
		if (picture.getAttribute("src")) picture.alt = "This picture is not on disk any more.";
	};

	context.watch(all => [shownOf(all), runNow(all)], (shown, run) => {
		const image = imageOf(shown);
		const isDrawing = run !== undefined && isOpen(run.phase);
		const isSeen = isDrawing && Boolean(run.preview);
		opener.hidden = !image || isSeen;
		preview.hidden = !isSeen;
		ghost.hidden = !isDrawing || isSeen || Boolean(image);
		placeholder.hidden = Boolean(image) || isDrawing;
		placeholder.textContent = samplerOf(now()) ? "Your picture appears here" : "Wire a Sampler to this node";
		if (isSeen) preview.src = run.preview;
		else preview.removeAttribute("src");
		if (isDrawing) [preview, ghost].forEach(element => setRatio(element, sizeOf(run)));
	});
	context.watch(all => [shownOf(all)], shown => {
		const images = shown?.job.result?.images ?? [];
		const image = imageOf(shown);
		strip.hidden = images.length < 2;
		keep(strip, images, ({id}) => id, stripButton, (element, {id}) => element.ariaPressed = String(id === image?.id));
		if (!shown || !image) return clear(picture);
		picture.alt = shown.job.request.prompt;
		setRatio(opener, image);
		void show(picture, image.image_url, app.connections[shown.service]);
		actions.update();
	});
	context.watch(all => [shownOf(all), runNow(all), all.services[runNow(all)?.service ?? FIRST_SERVICE]?.phase], (shown, run, phase) => {
		const image = imageOf(shown);
		const isDrawing = run !== undefined && isOpen(run.phase);
		state.dataset.phase = run?.phase ?? "idle";
		cancel.hidden = !isDrawing;
		cancel.disabled = run?.isCancelling ?? false;
		again.hidden = !run || isDrawing;
		const {images = [], failed_images: failed = []} = shown?.job.result ?? {};
		detail.textContent = run ? run.error : failedWords(failed);
		actions.row.hidden = facts.hidden = !image;
		facts.textContent = shown && image ? factsOf(shown, image) : "";
		showProgress(bar, run);
		if (run) {
			stage.textContent = run.phase === "unsent" && (phase === "down" || phase === "locked") ? "Waiting for the service" : runStatus(run);
			step.textContent = [runStep(run), eta(run)].filter(Boolean).join(" · ");
		} else {
			stage.textContent = failed.length ? `${images.length} of ${images.length + failed.length} pictures` : image ? "Finished" : "Ready";
			step.textContent = image && shown?.job.result ? `in ${duration(shown.job.result.generation_time_ms)}` : "";
		}
	});

	/** @returns {Picture | null} */
	function pictureNow() {
		const shown = shownOf(now());
		const image = imageOf(shown);
		return shown && image ? {...image, service: shown.service, request: shown.job.request} : null;
	}

	/** @param {State} state */
	function samplerOf({document}) {
		const origin = originOf(document.graph, context.id, "image");
		return origin?.kind === "sampler" ? origin.id : "";
	}

	/** @param {State} state */
	function shownOf(state) {
		return state.shown[samplerOf(state)];
	}

	/** @param {State} state */
	function runNow(state) {
		return runOf(state.runs, samplerOf(state));
	}

	/** @param {Run} run */
	function sizeOf({body: {width, height}, sampler}) {
		const defaults = modelOfSampler(now(), sampler)?.defaults;
		return {width: width ?? defaults?.width ?? 1, height: height ?? defaults?.height ?? 1};
	}

	/** @param {JobImage} image */
	function stripButton({id, seed, image_url}) {
		const thumbnail = make("img", {alt: "", width: 48, height: 48});
		void show(thumbnail, `${image_url}/thumbnail`, app.connections[shownOf(now())?.service ?? FIRST_SERVICE]);
		const choose = () => {
			const current = shownOf(now());
			const index = current?.job.result?.images.findIndex(image => image.id === id) ?? -1;
			if (current && index >= 0) store.set({shown: {...now().shown, [samplerOf(now())]: {...current, index}}});
		};
		return make("button", {"aria-label": `Seed ${seed}`, onclick: choose}, thumbnail);
	}

	async function look() {
		const image = pictureNow();
		if (!image) return;
		const key = `${image.service} ${image.id}`;
		if (!now().gallery.images.some(each => each.key === key)) {
			await app.gallery.search("");
			await app.gallery.refresh(image.service);
		}
		store.set({viewed: key});
	}
}

/** @type {Fn.imageOf} */
function imageOf(shown) {
	return shown?.job.result?.images[shown.index];
}

/** @type {Fn.imageFactsOf} */
function factsOf({job: {result, request}}, image) {
	const loras = (result?.loras_applied ?? []).map(
		({name, matched_keys: matched, unmatched_keys: rest}) => `${name}${rest ? ` (${matched} of ${matched + rest} layers)` : ""}`
	);
	return [
		`Seed ${image.seed}`,
		size(image),
		!result?.cost_usd && `${request.num_inference_steps} steps`,
		result && precision(result.precision),
		result?.cost_usd && `$${result.cost_usd}`,
		...loras
	]
		.filter(Boolean)
		.join(" · ");
}

/** @type {Fn.setRatio} */
function setRatio(element, {width, height}) {
	element.style.setProperty("--ratio", String(width / height || 1));
	element.style.setProperty("--widest", `${LARGEST_SCALE * (width || 256)}px`);
}
