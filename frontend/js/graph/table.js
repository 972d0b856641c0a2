/** The types of nodes: their sockets and values. What a node looks like is in js/nodes/. */

/** @import { NodeKind, NodeType, Socket, SocketType, Value, ValueSpec } from "../../types/graph" */

import { FIRST_SERVICE, SERVICE_NAMES } from "../config.js";

const MAX_PROMPT = 2000;
const MAX_NOTE = 4000;
export const MAX_SEED = Number.MAX_SAFE_INTEGER;
export const MAX_LORAS = 8;
export const MAX_REFERENCES = 4;

/** @type {Readonly<Record<SocketType, string>>} */
export const SOCKET_NAMES = {
  model: "Model",
  lora: "LoRA",
  text: "Text",
  image: "Image",
  mask: "Mask",
  reference: "References",
};

/** @type {Readonly<Record<NodeKind, NodeType>>} */
export const NODE_TYPES = {
  model: {
    title: "Model",
    about: "What draws: a service, and one of its models",
    width: 268,
    inputs: [{ name: "loras", type: "lora", label: "LoRAs", many: true }],
    outputs: [{ name: "model", type: "model", label: "Model" }],
    values: {
      service: { kind: "choice", initial: FIRST_SERVICE, choices: SERVICE_NAMES },
      backend: { kind: "name", initial: null },
      model: { kind: "name", initial: null },
    },
  },
  lora: {
    title: "LoRA",
    about: "A small file that teaches the model a style or a thing",
    width: 268,
    inputs: [],
    outputs: [{ name: "lora", type: "lora", label: "LoRA" }],
    values: {
      name: { kind: "name", initial: null },
      weight: number(1, { least: -2, most: 2, step: 0.05 }),
      trigger_word: { kind: "name", initial: null }, // null: the LoRA's own words; "": none
    },
  },
  prompt: {
    title: "Prompt",
    about: "What the picture should show",
    width: 320,
    inputs: [],
    outputs: [{ name: "text", type: "text", label: "Text" }],
    values: { text: text(MAX_PROMPT) },
  },
  negative: {
    title: "Negative prompt",
    about: "What to keep away from; a step takes twice as long",
    width: 320,
    inputs: [],
    outputs: [{ name: "text", type: "text", label: "Text" }],
    values: { text: text(MAX_PROMPT), true_cfg_scale: number(null, { least: 0, most: 20, step: 0.1 }) },
  },
  "image-input": {
    title: "Image input",
    about: "A picture to start from",
    width: 268,
    inputs: [],
    outputs: [{ name: "image", type: "image", label: "Image" }],
    values: {
      image: { kind: "name", initial: null },
      strength: number(0.6, { least: 0, most: 1, step: 0.05 }),
    },
  },
  mask: {
    title: "Mask",
    about: "Paint over what should be drawn anew",
    width: 300,
    inputs: [{ name: "image", type: "image", label: "Image", needed: true }],
    outputs: [{ name: "mask", type: "mask", label: "Mask" }],
    values: { mask: { kind: "name", initial: null }, brush: number(32, { least: 4, most: 256, step: 4, whole: true }) },
  },
  references: {
    title: "Reference images",
    about: "Up to four pictures for models that edit",
    width: 268,
    inputs: [],
    outputs: [{ name: "references", type: "reference", label: "References" }],
    values: { images: { kind: "names", initial: [], most: MAX_REFERENCES } },
  },
  sampler: {
    title: "Sampler",
    about: "Draws: steps, size, seed",
    width: 288,
    inputs: [
      { name: "model", type: "model", label: "Model", needed: true },
      { name: "prompt", type: "text", label: "Prompt", needed: true },
      { name: "negative", type: "text", label: "Negative" },
      { name: "image", type: "image", label: "Image" },
      { name: "mask", type: "mask", label: "Mask" },
      { name: "references", type: "reference", label: "References" },
    ],
    outputs: [{ name: "image", type: "image", label: "Image" }],
    values: {
      width: number(null, { least: 16, most: 8192, step: 16, whole: true }),
      height: number(null, { least: 16, most: 8192, step: 16, whole: true }),
      num_inference_steps: number(null, { least: 1, most: 100, step: 1, whole: true }),
      guidance_scale: number(null, { least: 0, most: 20, step: 0.1 }),
      seed_mode: { kind: "choice", initial: "random", choices: ["random", "fixed"] },
      seed: number(null, { least: 0, most: MAX_SEED, step: 1, whole: true }),
      num_images: number(1, { least: 1, most: 8, step: 1, whole: true }),
      output_format: { kind: "choice", initial: "png", choices: ["png", "jpeg", "webp"] },
    },
  },
  image: {
    title: "Image",
    about: "The picture while it is drawn, and when it is finished",
    width: 340,
    inputs: [{ name: "image", type: "image", label: "Image", needed: true }],
    outputs: [{ name: "image", type: "image", label: "Image" }],
    values: {},
  },
  compare: {
    title: "Compare",
    about: "Two pictures, one over the other",
    width: 440,
    inputs: [
      { name: "a", type: "image", label: "A", needed: true },
      { name: "b", type: "image", label: "B", needed: true },
    ],
    outputs: [],
    values: { view: { kind: "choice", initial: "slider", choices: ["slider", "side", "difference"] } },
  },
  note: {
    title: "Note",
    about: "Words for whoever opens this workflow",
    width: 260,
    inputs: [],
    outputs: [],
    values: { text: text(MAX_NOTE) },
  },
};

export const NODE_KINDS = /** @type {NodeKind[]} */ (Object.keys(NODE_TYPES));

/** The values of a new node. @param {NodeKind} kind @returns {Record<string, Value>} */
export function initialValues(kind) {
  const specs = Object.entries(NODE_TYPES[kind].values);
  return Object.fromEntries(specs.map(([name, spec]) => [name, spec.initial]));
}

/** @param {NodeKind} kind @param {string} name @returns {Socket | undefined} */
export function inputOf(kind, name) {
  return NODE_TYPES[kind].inputs.find((socket) => socket.name === name);
}

/** @param {NodeKind} kind @param {string} name @returns {Socket | undefined} */
export function outputOf(kind, name) {
  return NODE_TYPES[kind].outputs.find((socket) => socket.name === name);
}

/**
 * What is wrong with a value, or "". Only what can never be right: a number out of a model's range
 * is judged by the service.
 * @param {ValueSpec} spec
 * @param {unknown} value
 */
export function faultOf(spec, value) {
  switch (spec.kind) {
    case "text":
      return typeof value === "string" ? "" : "is no text";
    case "number":
      return value === null || (typeof value === "number" && Number.isFinite(value)) ? "" : "is no number";
    case "choice":
      return typeof value === "string" && spec.choices.includes(value)
        ? ""
        : `is none of ${spec.choices.join(", ")}`;
    case "name":
      return value === null || typeof value === "string" ? "" : "is no name";
    case "names":
      return Array.isArray(value) && value.every((item) => typeof item === "string") && value.length <= spec.most
        ? ""
        : `is no list of at most ${spec.most} names`;
  }
}

/** @param {number} longest @returns {ValueSpec} */
function text(longest) {
  return { kind: "text", initial: "", longest };
}

/**
 * @param {number | null} initial
 * @param {{least: number, most: number, step: number, whole?: boolean}} range
 * @returns {ValueSpec}
 */
function number(initial, { least, most, step, whole = false }) {
  return { kind: "number", initial, least, most, step, whole };
}
