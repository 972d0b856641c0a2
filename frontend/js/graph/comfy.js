/**
 * Workflows of ComfyUI that use its standard FLUX nodes, in both of its forms: the one it saves
 * (`nodes` and `links`) and the one it sends (`{"3": {class_type, inputs}}`). One is read from its
 * sampler backwards: what is wired to it decides what each part is.
 */

import {asObject} from "./restore.js";

/** Widgets of the saved form have no names: these are their places. @type {Record<string, string>} */
const WIDGETS = {
	KSampler: "seed,,steps,cfg,sampler_name,scheduler,denoise",
	KSamplerAdvanced: ",noise_seed,,steps,cfg",
	CLIPTextEncode: "text",
	CLIPTextEncodeFlux: "clip_l,t5xxl,guidance",
	FluxGuidance: "guidance",
	EmptyLatentImage: "width,height,batch_size",
	EmptySD3LatentImage: "width,height,batch_size",
	EmptyFlux2LatentImage: "width,height,batch_size",
	LoraLoader: "lora_name,strength_model,strength_clip",
	LoraLoaderModelOnly: "lora_name,strength_model",
	UNETLoader: "unet_name,weight_dtype",
	CheckpointLoaderSimple: "ckpt_name",
	NunchakuFluxDiTLoader: "model_path",
	NunchakuFluxLoraLoader: "lora_name,lora_strength",
	RandomNoise: "noise_seed",
	BasicScheduler: "scheduler,steps,denoise",
	Flux2Scheduler: "steps,width,height",
	ModelSamplingFlux: "max_shift,base_shift,width,height"
};

const SAMPLERS = ["KSampler", "SamplerCustomAdvanced", "KSamplerAdvanced"];
const LEFT_TO_THE_SERVICE =
	/^(VAE|Save|Preview|CLIPLoader|DualCLIPLoader|KSamplerSelect|Note|MarkdownNote|Reroute|PrimitiveNode|ConditioningZeroOut|NunchakuTextEncoderLoader)/;

/** Ours for names of files, the first that fits. @type {readonly [RegExp, string][]} */
const MODELS = [
	[/schnell/i, "flux-schnell"],
	[/krea/i, "flux-krea-dev"],
	[/kontext/i, "flux-kontext-dev"],
	[/fill/i, "flux-fill-dev"],
	[/klein.*base.*4b/i, "flux2-klein-base-4b"],
	[/klein.*9b/i, "flux2-klein-9b"],
	[/klein/i, "flux2-klein-4b"],
	[/dev/i, "flux-dev"]
];

/** @param {unknown} data */
export function isComfy(data) {
	return nodesFrom(data).size > 0;
}

/** The request of the workflow's first sampler, and what in the file has no counterpart here. Throws, saying why, for a workflow without a sampler that can be read. @param {unknown} data */
export function fromComfy(data) {
	const nodes = nodesFrom(data);
	const sampler = [...nodes.values()].find(({type}) => SAMPLERS.includes(type));
	if (!sampler) throw new Error(`the ComfyUI workflow has none of the samplers ${SAMPLERS.join(", ")}`);
	const reader = new Reader(nodes);
	reader.used.add(sampler.id);
	const wanted = sampler.type === "SamplerCustomAdvanced" ? customRequest(reader, sampler) : samplerRequest(reader, sampler);
	if (!wanted.prompt) throw new Error("no CLIPTextEncode node leads to the sampler of the ComfyUI workflow");
	const left = [...nodes.values()].filter(({id, type}) => !reader.used.has(id) && !LEFT_TO_THE_SERVICE.test(type));
	return {wanted, leftOut: [...new Set(left.map(({type}) => type))]};
}

export class Reader {
	/** What a part of the request was read from. @type {Set<string>} */
	used = new Set();

	/** @param {Map<string, ComfyNode>} nodes */
	constructor(nodes) {
		this.nodes = nodes;
	}

	/** @type {Fn.source} */
	source(node, input) {
		const value = node?.inputs[input];
		const found = isLink(value) ? (this.nodes.get(value.from) ?? null) : null;
		if (!found) return null;
		this.used.add(found.id);
		const [through] = found.type === "Reroute" ? Object.keys(found.inputs).filter(name => isLink(found.inputs[name])) : [];
		return through === undefined ? found : this.source(found, through);
	}

	/** @type {Fn.value} */
	value(node, input) {
		const source = this.source(node, input);
		return source ? Object.values(source.inputs).find(value => !isLink(value)) : node?.inputs[input];
	}

	/** @param {ComfyNode | null} node @param {...string} inputs the first that is one */
	number(node, ...inputs) {
		const values = inputs.map(input => this.value(node, input));
		return values.find(value => typeof value === "number") ?? null;
	}
}

/** @type {Fn.samplerRequest} */
function samplerRequest(reader, sampler) {
	const cfg = reader.number(sampler, "cfg");
	const positive = conditioning(reader, reader.source(sampler, "positive"));
	const negative = cfg !== null && cfg > 1 ? conditioning(reader, reader.source(sampler, "negative")) : {};
	return {
		...positive,
		...(negative.prompt && {negative_prompt: negative.prompt, true_cfg_scale: cfg}),
		num_inference_steps: reader.number(sampler, "steps"),
		seed: reader.number(sampler, "seed", "noise_seed"),
		...latent(reader, reader.source(sampler, "latent_image")),
		...modelChain(reader, reader.source(sampler, "model"))
	};
}

/** @type {Fn.customRequest} */
function customRequest(reader, sampler) {
	const guider = reader.source(sampler, "guider");
	return {
		...conditioning(reader, reader.source(guider, "conditioning") ?? reader.source(guider, "positive")),
		num_inference_steps: reader.number(reader.source(sampler, "sigmas"), "steps"),
		seed: reader.number(reader.source(sampler, "noise"), "noise_seed"),
		...latent(reader, reader.source(sampler, "latent_image")),
		...modelChain(reader, reader.source(guider, "model"))
	};
}

/** @type {Fn.conditioning} */
function conditioning(reader, node) {
	const guidance = () => ({guidance_scale: reader.number(node, "guidance")});
	const text = (/** @type {string} */ input) => ({prompt: String(reader.value(node, input) ?? "")});
	if (node?.type === "FluxGuidance") return {...conditioning(reader, reader.source(node, "conditioning")), ...guidance()};
	if (node?.type === "CLIPTextEncodeFlux") return {...text("t5xxl"), ...guidance()};
	return node?.type === "CLIPTextEncode" ? text("text") : {};
}

/** @type {Fn.latent} */
function latent(reader, node) {
	return {width: reader.number(node, "width"), height: reader.number(node, "height"), num_images: reader.number(node, "batch_size") ?? 1};
}

/** @type {Fn.modelChain} */
function modelChain(reader, node) {
	const loras = [];
	let file;
	for (const seen = new Set(); node && !seen.has(node) && typeof file !== "string"; node = reader.source(node, "model")) {
		seen.add(node);
		file = reader.value(node, "unet_name") ?? reader.value(node, "ckpt_name") ?? reader.value(node, "model_path");
		const lora = reader.value(node, "lora_name");
		if (typeof lora === "string") {
			loras.unshift({name: lora.replace(/^.*[\\/]/, "").replace(/\.safetensors$/, ""), weight: reader.number(node, "strength_model", "lora_strength") ?? 1});
		}
	}
	const model = typeof file === "string" ? {model: MODELS.find(([pattern]) => pattern.test(String(file)))?.[1] ?? null} : {};
	return {...model, ...(loras.length && {loras})};
}

/** @type {Fn.nodesFrom} */
function nodesFrom(data) {
	const file = asObject(data);
	const nodes = Array.isArray(file.nodes) && Array.isArray(file.links) ? savedNodes(file.nodes, file.links) : sentNodes(file);
	return new Map(nodes.map(node => [node.id, node]));
}

/** @type {Fn.sentNodes} */
function sentNodes(file) {
	return Object.entries(file).flatMap(([id, data]) => {
		const {class_type: type, inputs} = asObject(data);
		const values = Object.entries(asObject(inputs)).map(([name, value]) => [name, Array.isArray(value) ? {from: String(value[0])} : value]);
		return typeof type === "string" ? [{id, type, inputs: Object.fromEntries(values)}] : [];
	});
}

/** @type {Fn.savedNodes} */
function savedNodes(nodes, links) {
	/** @type {Map<unknown, string>} */
	const origins = new Map(links.flatMap(link => (Array.isArray(link) ? [[link[0], String(link[1])]] : [])));
	return nodes.flatMap(data => {
		const {id, type, mode, inputs, widgets_values: widgets} = asObject(data);
		if (typeof type !== "string" || mode === 2 || mode === 4) return []; // muted, bypassed
		/** @type {Record<string, unknown>} */
		const values = {};
		const names = WIDGETS[type]?.split(",") ?? [];
		(Array.isArray(widgets) ? widgets : []).forEach((value, index) => (values[names[index] || `widget ${index}`] = value));
		for (const input of Array.isArray(inputs) ? inputs : []) {
			const {name, link} = asObject(input);
			const from = origins.get(link);
			if (typeof name === "string" && from !== undefined) values[name] = {from};
		}
		return [{id: String(id), type, inputs: values}];
	});
}

/** @type {Fn.isLink} */
function isLink(value) {
	return typeof value === "object" && value !== null && "from" in value;
}
