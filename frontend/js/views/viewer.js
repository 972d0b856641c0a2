/** One picture of the gallery, large. Arrows go on, Escape closes, Delete asks. */

import {button, find, keep, make} from "../dom.js";
import {duration, fileSize, modelTitle, moment, precision, size} from "../format.js";
import {clear, show} from "../pictures.js";
import {actionsFor} from "./actions.js";
import {confirmed} from "./confirm.js";

/** @param {App} app */
export function mountViewer(app) {
	const {store, connections, gallery} = app;
	const dialog = find("dialog#viewer");
	const picture = find("img#viewer-picture");
	const [previous, next, facts] = [find("#viewer-previous"), find("#viewer-next"), find("#viewer-facts")];
	const close = () => store.set({viewed: null});
	const actions = actionsFor(app, () => imageAt(0), {onUsed: close});
	const pin = button({words: "Pin", icon: "pin", act: togglePin});
	pin.title = "Cleanup leaves pinned pictures";
	actions.row.append(pin, button({words: "Delete", icon: "delete", act: () => void askAndDelete()}));
	find("#viewer-actions").append(actions.row);
	find("#viewer-close").onclick = close;
	previous.onclick = () => void go(-1);
	next.onclick = () => void go(1);
	dialog.onclose = close;
	dialog.onkeydown = event => {
		/** @type {Record<string, () => unknown>} */
		const keys = {ArrowLeft: () => go(-1), ArrowRight: () => go(1), Delete: askAndDelete, p: togglePin};
		const act = keys[event.key];
		if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
			event.preventDefault();
			act();
		}
	};

	store.watch(
		({viewed, gallery: {images, isComplete}, services}) => [viewed, isComplete, images, services],
		(viewed, isComplete, _images, _services) => {
			const image = imageAt(0);
			if (!viewed || !image) {
				if (dialog.open) {
					dialog.close();
					clear(picture);
				}
				return;
			}
			// Not `disabled`: a disabled button would keep the focus and swallow the next arrow key.
			previous.ariaDisabled = String(!imageAt(-1));
			next.ariaDisabled = String(!imageAt(1) && isComplete);
			picture.alt = find("#viewer-prompt").textContent = image.prompt;
			picture.style.setProperty("--ratio", String(image.width / image.height));
			picture.style.setProperty("--widest", `${4 * image.width}px`);
			const rows = factsOf(image, modelTitle(image.request.model, store.state.services[image.service]?.models ?? []));
			keep(facts, rows, ([name]) => name, ([name]) => make("div", make("dt", name), make("dd")), (row, [, value]) => {
				const cell = find("dd", row);
				if (cell.textContent !== value) cell.textContent = value;
			});
			actions.update();
			pin.ariaPressed = String(image.pinned);
			void show(picture, image.image_url, connections[image.service]);
			if (!dialog.open) dialog.showModal();
		}
	);

	/** The picture so many places after the one that is looked at. @param {number} distance */
	function imageAt(distance) {
		const {
			viewed,
			gallery: {images}
		} = store.state;
		const place = images.findIndex(({key}) => key === viewed);
		return place < 0 ? null : (images[place + distance] ?? null);
	}

	/** @type {Fn.go} */
	async function go(distance) {
		if (distance > 0 && !imageAt(distance)) await gallery.loadMore();
		const image = imageAt(distance);
		if (image) store.set({viewed: image.key});
	}

	function togglePin() {
		const image = imageAt(0);
		if (image) void gallery.pin(image);
	}

	async function askAndDelete() {
		const image = imageAt(0);
		const neighbour = imageAt(1) ?? imageAt(-1);
		if (!image || !(await confirmed("Delete this picture? Its file goes with it, for good."))) return;
		store.set({viewed: neighbour?.key ?? null});
		if (!(await gallery.delete(image))) store.set({viewed: image.key});
	}
}

/** @type {Fn.viewerFactsOf} */
function factsOf({seed, width, height, request, precision: name, engine, size_bytes, created_at, generation_time_ms}, model) {
	const facts = {
		Seed: String(seed),
		Size: size({width, height}),
		Steps: String(request.num_inference_steps),
		Model: model,
		Precision: precision(name),
		Engine: engine,
		Guidance: request.guidance_scale && String(request.guidance_scale),
		LoRAs: request.loras.map(({name: lora, weight}) => `${lora} (${weight})`).join(", "),
		"Negative prompt": request.negative_prompt,
		"True CFG": request.negative_prompt && String(request.true_cfg_scale),
		Time: generation_time_ms && duration(generation_time_ms),
		File: `${request.output_format.toUpperCase()}, ${fileSize(size_bytes)}`,
		Drawn: moment(created_at)
	};
	return Object.entries(facts).flatMap(([title, value]) => (value ? [[title, value]] : []));
}
