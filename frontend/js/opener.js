/** Files that are dropped, pasted or chosen: LoRAs, pictures with a request in them, workflows. */

import {SERVICE_NAMES} from "./config.js";
import {keepAsset} from "./assets.js";
import {messageOf} from "./format.js";
import {asObject, graphOf, wantedFrom} from "./graph/restore.js";
import {isWorkflow, parse} from "./graph/workflow.js";
import {isLoraFile} from "./library.js";
import {firstService} from "./services.js";

/** Larger files are no workflows. */
const MOST_JSON_BYTES = 20 * 2 ** 20;
const ROW = 5;

/** @type {Fn.newOpener} */
export function newOpener(store, editor, library, onOpened) {
	/** @type {Opener} */
	const own = {
		async open(files, place = null) {
			for (const [index, file] of files.filter(each => !isLoraFile(each)).entries()) {
				try {
					// Several pictures lie in rows.
					await openOne(file, place && {x: place.x + (index % ROW) * 300, y: place.y + Math.floor(index / ROW) * 460});
					if (!place || index) onOpened();
				} catch (error) {
					store.say(`${file.name} was not opened: ${messageOf(error)}.`);
				}
			}
			const loras = files.filter(isLoraFile); // last: a graph that is opened takes the place of all nodes
			if (loras.length) await library.add(loras, place);
		},

		async openText(text, name) {
			const data = parsed(text);
			if (data === undefined) throw new Error("it is not JSON");
			if (isWorkflow(data)) {
				const {graph, name: own} = parse(data);
				replace(graph, own || name);
				store.say("Opened.");
			} else if (!(await openComfy(data, name))) throw new Error("it is no workflow of this page and none of ComfyUI");
		},

		openRequest(request, service, seed) {
			replace(graphOf({...wantedFrom(request), seed, num_images: 1}, service), "");
		}
	};
	return own;

	/** @type {Fn.openOne} */
	async function openOne(file, place) {
		if (file.type.startsWith("image/") || /\.(png|jpe?g|webp)$/i.test(file.name)) await openPicture(file, place);
		else if (!/\.json$/i.test(file.name)) throw new Error("this page opens .safetensors, .png, .json and pictures");
		else if (file.size > MOST_JSON_BYTES) throw new Error("it is too large for a workflow");
		else await own.openText(await file.text(), file.name.replace(/\.json$/i, ""));
	}

	/** @type {Fn.openPicture} */
	async function openPicture(file, place) {
		const [{pictureTexts}, {fromInfotext}] = await Promise.all([import("./graph/picture_texts.js"), import("./graph/infotext.js")]);
		const isOther = !/png|jpeg|webp/.test(file.type) && !/\.(png|jpe?g|webp)$/i.test(file.name);
		const {flux_api: ours, parameters = "", prompt} = isOther ? {} : await pictureTexts(await file.arrayBuffer());
		const infotext = fromInfotext(parameters);
		if (ours !== undefined) {
			const {request, precision} = asObject(parsed(ours));
			if (!asObject(request).prompt) throw new Error("its flux_api text holds no request");
			const service = SERVICE_NAMES.find(name => name === precision) ?? firstService(store.state);
			replace(graphOf(wantedFrom(request), service), "");
			store.say("The graph of this picture is back.");
		} else if (infotext) openForeign(infotext, []);
		else if (prompt === undefined || !(await openComfy(parsed(prompt), ""))) {
			editor.useAsInput(await keepAsset(file), place);
			store.say("The picture says nothing about how it was made: it is an input now.");
		}
	}

	/** @type {Fn.openComfy} */
	async function openComfy(data, name) {
		const {fromComfy, isComfy} = await import("./graph/comfy.js");
		if (!isComfy(data)) return false;
		const {wanted, leftOut} = fromComfy(data);
		openForeign(wanted, leftOut, name);
		return true;
	}

	/** @type {Fn.openForeign} */
	function openForeign(wanted, leftOut, name = "") {
		const service = firstService(store.state);
		const isKnown = store.state.services[service]?.models.some(({id}) => id === wanted.model);
		replace(graphOf({...wanted, model: isKnown ? wanted.model : null, backend: null}, service), name);
		const missing = [
			...(wanted.model && !isKnown ? [`its model ${wanted.model} is not here, so the default draws`] : []),
			...(leftOut.length ? [`left out: ${leftOut.join(", ")}`] : [])
		];
		store.say(missing.length ? `Opened; ${missing.join("; ")}.` : "Opened.");
	}

	/** @type {Fn.replace} */
	function replace(graph, name) {
		editor.replace(graph, "open", name);
		onOpened();
	}
}

/** Undefined for what is no JSON. @type {Fn.parsed} */
function parsed(text) {
	try {
		return JSON.parse(text);
	} catch {
		return undefined;
	}
}
