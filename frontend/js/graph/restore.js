/** From a request back to the graph that asks for it. */

import {EMPTY_GRAPH, endOf, freeIds, newNode} from "./graph.js";
import {MAX_REFERENCES, NODE_TYPES} from "./table.js";

/** Builds graphs by hand: nodes get ids in the order in which they come. */
export class Builder {
	#nodeId;
	#wireId;

	/** @param {Graph} [graph] */
	constructor(graph = EMPTY_GRAPH) {
		this.graph = graph;
		this.#nodeId = freeIds(graph, "nodes");
		this.#wireId = freeIds(graph, "wires");
	}

	/** @type {Fn.node} */
	node(kind, x, y, values, collapsed = false) {
		const id = this.#nodeId();
		this.graph = {...this.graph, nodes: {...this.graph.nodes, [id]: {...newNode(id, kind, {x, y}, values), collapsed}}};
		return id;
	}

	/** @param {string} from "n1.model" @param {string} to "n4.model" */
	wire(from, to) {
		const id = this.#wireId();
		this.graph = {...this.graph, wires: {...this.graph.wires, [id]: {id, from: endOf(from), to: endOf(to)}}};
		return this;
	}
}

/** The graph of one request. @type {Fn.graphOf} */
export function graphOf(wanted, service) {
	const {
		loras = [],
		backend = null,
		prompt = "",
		seed = null,
		num_images = 1,
		output_format = "png",
		image = null,
		mask = null,
		reference_images: images = []
	} = wanted;
	const {width = null, height = null, num_inference_steps = null, guidance_scale = null, true_cfg_scale = null} = wanted;
	const builder = new Builder();
	const left = loras.length ? NODE_TYPES.lora.width + 64 : 0;
	const model = builder.node("model", left, 0, {service, backend, model: wanted.model ?? null});
	const words = builder.node("prompt", left, PROMPT_TOP, {text: prompt});
	const seed_mode = seed === null ? "random" : "fixed";
	const values = {width, height, num_inference_steps, guidance_scale, seed_mode, seed, num_images, output_format};
	const sampler = builder.node("sampler", left + 388, 0, values);
	builder.wire(`${model}.model`, `${sampler}.model`).wire(`${words}.text`, `${sampler}.prompt`);
	builder.wire(`${sampler}.image`, `${builder.node("image", left + 744, 0)}.image`);
	loras.forEach(({name, weight = 1, trigger_word = null}, index) => {
		builder.wire(`${builder.node("lora", 0, index * 370, {name, weight, trigger_word})}.lora`, `${model}.loras`);
	});
	let y = 840;
	/** Below the prompt. @type {Fn.restoreAdd} */
	const add = (kind, values, output, input, height) => {
		const node = builder.node(kind, left, y, values);
		builder.wire(`${node}.${output}`, `${sampler}.${input}`);
		y += height;
		return node;
	};
	if (wanted.negative_prompt) add("negative", {text: wanted.negative_prompt, true_cfg_scale}, "text", "negative", 270);
	const start = image && add("image-input", {image, strength: wanted.strength ?? 0.6}, "image", "image", 400);
	const painted = mask && add("mask", {mask}, "mask", "mask", 400);
	if (start && painted) builder.wire(`${start}.image`, `${painted}.image`);
	if (images.length) add("references", {images: images.slice(0, MAX_REFERENCES)}, "references", "references", 0);
	return builder.graph;
}

/** Below the Model node. */
const PROMPT_TOP = 436;

/** @type {Fn.wantedFrom} */
export function wantedFrom(data) {
	const given = asObject(data);
	/** @type {Record<string, unknown>} */
	const wanted = {};
	for (const name of ["prompt", "negative_prompt", "model", "backend", "image", "mask"]) {
		if (typeof given[name] === "string") wanted[name] = given[name];
	}
	for (const name of ["width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale", "seed", "num_images", "strength"]) {
		if (Number.isFinite(given[name])) wanted[name] = given[name];
	}
	if (["png", "jpeg", "webp"].includes(String(given.output_format))) wanted.output_format = given.output_format;
	if (Array.isArray(given.loras)) wanted.loras = given.loras.flatMap(loraFrom);
	if (Array.isArray(given.reference_images)) wanted.reference_images = given.reference_images.filter(each => typeof each === "string");
	return wanted;
}

/** @param {unknown} data */
function loraFrom(data) {
	const {name, weight, trigger_word, trigger_words} = asObject(data);
	const words = Array.isArray(trigger_words) ? trigger_words : [trigger_word];
	// Several words are the LoRA's own: a request names at most one.
	const word = words.length === 0 ? "" : words.length === 1 ? words[0] : null;
	if (typeof name !== "string") return [];
	return [{name, weight: typeof weight === "number" ? weight : 1, ...(typeof word === "string" && {trigger_word: word})}];
}

/** What of a file is an object; else one without values. @type {Fn.asObject} */
export function asObject(value) {
	return typeof value === "object" && value !== null && !Array.isArray(value) ? {...value} : {};
}
