/** From a graph to the requests that it stands for. */

import {planOf, originOf} from "./plan.js";
import {MAX_LORAS} from "./table.js";

/** @type {Fn.orderOf} */
export function orderOf(graph, samplerId) {
	const plan = planOf(graph, samplerId);
	if (!plan) return null;
	const {sampler, model, prompt, negative, loras} = plan;
	/** @type {Fault[]} */
	const faults = [];
	/** @type {Fn.fault} */
	const fault = (node, field, message) => faults.push({node, field, message});
	if (!model) fault(samplerId, "model", "Wire a Model node to this input.");
	if (!prompt) fault(samplerId, "prompt", "Wire a Prompt node to this input.");
	else if (!textOf(prompt).trim()) fault(prompt.id, "prompt", "Write what the picture should show, or click an example.");
	for (const {id} of loras.filter(({values}) => values.name === null)) fault(id, "loras", "Choose a LoRA, or delete this node.");
	const chosen = loras.filter(({values}) => values.name !== null);
	if (chosen.length > MAX_LORAS) fault(model?.id ?? samplerId, "loras", `A picture takes ${MAX_LORAS} LoRAs; ${chosen.length} are wired.`);
	const parts = partsOf(graph, samplerId, fault);
	const scale = negative?.values.true_cfg_scale;
	const {image} = plan;
	/** @type {GenerateBody} */
	const body = {
		prompt: textOf(prompt),
		...samplerValues(sampler),
		...(typeof model?.values.model === "string" && {model: model.values.model}),
		...(typeof model?.values.backend === "string" && {backend: model.values.backend}),
		...(textOf(negative).trim() && {negative_prompt: textOf(negative), ...(typeof scale === "number" && {true_cfg_scale: scale})}),
		loras: chosen.map(loraOf), // none is said too: left out, the service's default LoRAs would act
		...(image?.kind === "image-input" && parts.some(({field}) => field === "image") && {strength: Number(image.values.strength)})
	};
	return {sampler: samplerId, service: String(model?.values.service ?? ""), body, parts, faults};
}

/** @type {Fn.samplerValues} */
function samplerValues({values}) {
	const numbers = ["width", "height", "num_inference_steps", "guidance_scale"].filter(name => typeof values[name] === "number");
	return {
		...Object.fromEntries(numbers.map(name => [name, values[name]])),
		...(typeof values.num_images === "number" && values.num_images !== 1 && {num_images: values.num_images}),
		...(values.seed_mode === "fixed" && typeof values.seed === "number" && {seed: values.seed}),
		...(values.output_format !== "png" && {output_format: String(values.output_format)})
	};
}

/** @param {GraphNode} node */
function loraOf({values: {name, weight, trigger_word}}) {
	return {name: String(name), weight: Number(weight ?? 1), ...(typeof trigger_word === "string" && {trigger_word})};
}

/** @type {Fn.partsOf} */
function partsOf(graph, samplerId, fault) {
	/** @type {Part[]} */
	const parts = [];
	/** @type {Fn.requestAdd} */
	const add = (node, field, source, message) => {
		if (typeof source === "string") parts.push({field, source, sampler: null});
		else fault(node.id, field, `${message}, or delete this node.`);
	};
	const image = originOf(graph, samplerId, "image");
	if (image?.kind === "sampler") parts.push({field: "image", source: "", sampler: image.id});
	else if (image?.kind === "image-input") add(image, "image", image.values.image, "Drop a picture here");
	const mask = originOf(graph, samplerId, "mask");
	if (mask) add(mask, "mask", mask.values.mask, "Paint over what should be drawn anew");
	const references = originOf(graph, samplerId, "references");
	const images = /** @type {readonly string[]} */ (references?.values.images ?? []);
	if (references && !images.length) add(references, "reference_images", null, "Drop pictures here");
	return [...parts, ...images.map(source => /** @type {Part} */ ({field: "reference_images", source, sampler: null}))];
}

/** @type {Fn.textOf} */
function textOf(node) {
	return String(node?.values.text ?? "");
}
