/** What nodes with pictures of the page share. */

import {isAsset, keepAsset, readAsset} from "../assets.js";
import {make} from "../dom.js";
import {messageOf} from "../format.js";
import {modelAfter} from "../models.js";
import {show} from "../pictures.js";

/** What a service calls a picture that it began with. */
const KEPT = /^[0-9a-f]{64}$/;

/** @type {Fn.showSource} */
export async function showSource(image, app, source) {
	if (image.dataset.source === source) return;
	image.dataset.source = source;
	image.removeAttribute("src");
	if (isAsset(source)) {
		const blob = await readAsset(source);
		if (blob && image.dataset.source === source) {
			const url = URL.createObjectURL(blob);
			image.addEventListener("load", () => URL.revokeObjectURL(url), {once: true});
			image.src = url;
		}
	} else if (KEPT.test(source)) {
		image.alt = `The picture ${source.slice(0, 8)}…, as the service keeps it for a while`;
	} else if (source) {
		const known = app.store.state.gallery.images.find(({id}) => id === source);
		await show(image, `/images/${encodeURIComponent(source)}`, known ? app.connections[known.service] : Object.values(app.connections)[0]);
	}
}

/** @type {Fn.keptOf} */
export async function keptOf({store}, files) {
	const kept = files.map(file => keepAsset(file).catch(error => store.say(`${file.name} was not taken: ${messageOf(error)}.`)));
	return (await Promise.all(kept)).flatMap(name => name ?? []);
}

/** @type {Fn.takeDrops} */
export function takeDrops(element, take) {
	element.ondragover = event => event.preventDefault();
	element.ondrop = event => {
		const files = [...(event.dataTransfer?.files ?? [])].filter(({type}) => type.startsWith("image/"));
		if (files.length) {
			event.preventDefault();
			event.stopPropagation();
			take(files);
		}
	};
}

/** @type {Fn.whyNotUsed} */
export function whyNotUsed(context, way) {
	const words = make("p.hint.warning");
	context.watch(
		state => {
			const model = modelAfter(state, context.id);
			if (!model?.ways || model.ways.includes(way)) return [""];
			const able = Object.values(state.services)
				.flatMap(({models}) => models)
				.filter(({ways, available}) => available && ways?.includes(way));
			const others = [...new Set(able.map(({title}) => title))].join(", ");
			return [
				`${model.title} takes no ${way === "references" ? "reference images" : way}. ${others ? `These do: ${others}.` : "No model that runs here does."}`
			];
		},
		text => {
			words.hidden = !text;
			words.textContent = text;
		}
	);
	return words;
}
