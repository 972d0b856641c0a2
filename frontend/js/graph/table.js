/** The types of nodes: their sockets and values. What a node looks like is in js/nodes/. */

import {FIRST_SERVICE, SERVICE_NAMES} from "../config.js";

export const MAX_SEED = Number.MAX_SAFE_INTEGER;
export const MAX_LORAS = 8;
export const MAX_REFERENCES = 4;

/** @type {Readonly<Record<SocketType, string>>} */
export const SOCKET_NAMES = {model: "Model", lora: "LoRA", text: "Text", image: "Image", mask: "Mask", reference: "References"};

/** An output is called what its type is. @type {(type: SocketType, name?: string) => Socket} */
const out = (type, name = type) => ({name, type, label: SOCKET_NAMES[type]});
/** @type {(type: SocketType, name?: string, label?: string) => Socket} */
const into = (type, name = type, label = SOCKET_NAMES[type]) => ({name, type, label});
/** One without which nothing can be drawn. @type {(...socket: Parameters<typeof into>) => Socket} */
const needed = (...socket) => ({...into(...socket), needed: true});
/** @type {ValueSpec} */
const text = {kind: "text", initial: ""};
/** @type {(initial: number | null, least: number, most: number, step: number, whole?: boolean) => ValueSpec} */
const number = (initial, least, most, step, whole = false) => ({kind: "number", initial, least, most, step, whole});
/** @type {(initial: number | null, least: number, most: number, step?: number) => ValueSpec} */
const whole = (initial, least, most, step = 1) => number(initial, least, most, step, true);
/** @type {(initial: string, choices: readonly string[]) => ValueSpec} */
const choice = (initial, choices) => ({kind: "choice", initial, choices});
/** @type {ValueSpec} */
const name = {kind: "name", initial: null};

/** @type {Readonly<Record<NodeKind, NodeType>>} */
export const NODE_TYPES = {
	model: {
		title: "Model",
		about: "What draws: a service, and one of its models",
		width: 320,
		inputs: [{...into("lora", "loras", "LoRAs"), many: true}],
		outputs: [out("model")],
		values: {service: choice(FIRST_SERVICE, SERVICE_NAMES), backend: name, model: name}
	},
	lora: {
		title: "LoRA",
		about: "A small file that teaches the model a style or a thing",
		width: 268,
		inputs: [],
		outputs: [out("lora")],
		values: {name, weight: number(1, -2, 2, 0.05), trigger_word: name} // a word of null: the LoRA's own; "": none
	},
	prompt: {title: "Prompt", about: "What the picture should show", width: 320, inputs: [], outputs: [out("text")], values: {text}},
	negative: {
		title: "Negative prompt",
		about: "What to keep away from; a step takes twice as long",
		width: 320,
		inputs: [],
		outputs: [out("text")],
		values: {text, true_cfg_scale: number(null, 0, 20, 0.1)}
	},
	"image-input": {
		title: "Image input",
		about: "A picture to start from",
		width: 268,
		inputs: [],
		outputs: [out("image")],
		values: {image: name, strength: number(0.6, 0, 1, 0.05)}
	},
	mask: {
		title: "Mask",
		about: "Paint over what should be drawn anew",
		width: 300,
		inputs: [needed("image")],
		outputs: [out("mask")],
		values: {mask: name, brush: whole(32, 4, 256, 4)}
	},
	references: {
		title: "Reference images",
		about: "Up to four pictures for models that edit",
		width: 268,
		inputs: [],
		outputs: [out("reference", "references")],
		values: {images: {kind: "names", initial: [], most: MAX_REFERENCES}}
	},
	sampler: {
		title: "Sampler",
		about: "Draws: steps, size, seed",
		width: 288,
		inputs: [
			needed("model"),
			needed("text", "prompt", "Prompt"),
			into("text", "negative", "Negative"),
			into("image"),
			into("mask"),
			into("reference", "references")
		],
		outputs: [out("image")],
		values: {
			width: whole(null, 16, 8192, 16),
			height: whole(null, 16, 8192, 16),
			num_inference_steps: whole(null, 1, 100),
			guidance_scale: number(null, 0, 20, 0.1),
			seed_mode: choice("random", ["random", "fixed"]),
			seed: whole(null, 0, MAX_SEED),
			num_images: whole(1, 1, 8),
			output_format: choice("png", ["png", "jpeg", "webp"])
		}
	},
	image: {
		title: "Image",
		about: "The picture while it is drawn, and when it is finished",
		width: 340,
		inputs: [needed("image")],
		outputs: [out("image")],
		values: {}
	},
	compare: {
		title: "Compare",
		about: "Two pictures, one over the other",
		width: 440,
		inputs: [needed("image", "a", "A"), needed("image", "b", "B")],
		outputs: [],
		values: {view: choice("slider", ["slider", "side", "difference"])}
	},
	note: {title: "Note", about: "Words for whoever opens this workflow", width: 260, inputs: [], outputs: [], values: {text}}
};

export const NODE_KINDS = /** @type {NodeKind[]} */ (Object.keys(NODE_TYPES));

/** The values of a new node. @type {Fn.initialValues} */
export function initialValues(kind) {
	return Object.fromEntries(Object.entries(NODE_TYPES[kind].values).map(([name, spec]) => [name, spec.initial]));
}

/** @type {Fn.inputOf} */
export function inputOf(kind, name) {
	return NODE_TYPES[kind].inputs.find(socket => socket.name === name);
}

/** @type {Fn.outputOf} */
export function outputOf(kind, name) {
	return NODE_TYPES[kind].outputs.find(socket => socket.name === name);
}

/** The type of socket that a node is known by, for its colour. @param {NodeKind} kind */
export function mainType(kind) {
	return (NODE_TYPES[kind].outputs[0] ?? NODE_TYPES[kind].inputs[0])?.type;
}

/** @type {Fn.faultOf} */
export function faultOf(spec, value) {
	switch (spec.kind) {
		case "text":
			return typeof value === "string" ? "" : "is no text";
		case "number":
			return value === null || Number.isFinite(value) ? "" : "is no number";
		case "choice":
			return spec.choices.includes(String(value)) ? "" : `is none of ${spec.choices.join(", ")}`;
		case "name":
			return value === null || typeof value === "string" ? "" : "is no name";
		case "names":
			return Array.isArray(value) && value.length <= spec.most && value.every(item => typeof item === "string")
				? ""
				: `is no list of at most ${spec.most} names`;
	}
}
