/** From a graph to the requests that it stands for. */

/** @import { GenerateBody } from "../../types/api" */
/** @import { Graph, GraphNode } from "../../types/graph" */

import { planOf, originOf } from "./plan.js";
import { MAX_LORAS } from "./table.js";

/**
 * A part of a request that is not text: a picture of the page (`asset:…`), a picture of a service
 * by id, or the coming picture of another sampler.
 * @typedef {{field: "image" | "mask" | "reference_images", source: string, sampler: string | null}} Part
 *
 * @typedef {object} Order
 * @property {string} sampler
 * @property {string} service
 * @property {GenerateBody} body without pictures
 * @property {readonly Part[]} parts the pictures to put in before it is sent
 * @property {readonly {node: string, field: string, message: string}[]} faults
 */

const NUMBERS = /** @type {const} */ (["width", "height", "num_inference_steps", "guidance_scale"]);

/**
 * What a sampler asks for. Left to the model is what was left open; values are judged by the service.
 * @param {Graph} graph
 * @param {string} samplerId
 * @returns {Order | null}
 */
export function orderOf(graph, samplerId) {
  const plan = planOf(graph, samplerId);
  if (!plan) {
    return null;
  }
  const { sampler, model, prompt, negative, loras } = plan;
  const faults = [];
  const promptText = textOf(prompt);
  if (!model) {
    faults.push({ node: samplerId, field: "model", message: "Wire a Model node to this input." });
  }
  if (!prompt) {
    faults.push({ node: samplerId, field: "prompt", message: "Wire a Prompt node to this input." });
  } else if (!promptText.trim()) {
    faults.push({ node: prompt.id, field: "prompt", message: "Write what the picture should show, or click an example." });
  }
  /** @type {GenerateBody} */
  const body = { prompt: promptText, ...samplerValues(sampler) };
  setIfChosen(body, "model", model?.values.model);
  setIfChosen(body, "backend", model?.values.backend);
  if (negative && textOf(negative).trim()) {
    body.negative_prompt = textOf(negative);
    if (typeof negative.values.true_cfg_scale === "number") {
      body.true_cfg_scale = negative.values.true_cfg_scale;
    }
  }
  const chosen = loras.filter(({ values }) => values.name !== null);
  for (const { id } of loras.filter(({ values }) => values.name === null)) {
    faults.push({ node: id, field: "loras", message: "Choose a LoRA, or cut its wire." });
  }
  if (chosen.length > MAX_LORAS) {
    faults.push({ node: model?.id ?? samplerId, field: "loras", message: `A picture takes ${MAX_LORAS} LoRAs; ${chosen.length} are wired.` });
  }
  body.loras = chosen.map(loraOf); // none is said too: left out, the service's default LoRAs would act
  const parts = partsOf(graph, samplerId, faults);
  const start = plan.image;
  if (start?.kind === "image-input" && parts.some(({ field }) => field === "image")) {
    body.strength = Number(start.values.strength);
  }
  return { sampler: samplerId, service: String(model?.values.service ?? ""), body, parts, faults };
}

/** @param {GraphNode} sampler @returns {Partial<GenerateBody>} */
function samplerValues({ values }) {
  /** @type {Partial<GenerateBody>} */
  const body = {};
  for (const name of NUMBERS) {
    const value = values[name];
    if (typeof value === "number") {
      body[name] = value;
    }
  }
  if (typeof values.num_images === "number" && values.num_images !== 1) {
    body.num_images = values.num_images;
  }
  if (values.seed_mode === "fixed" && typeof values.seed === "number") {
    body.seed = values.seed;
  }
  if (values.output_format !== "png") {
    body.output_format = String(values.output_format);
  }
  return body;
}

/** @param {GraphNode} node */
function loraOf({ values }) {
  return {
    name: String(values.name),
    weight: Number(values.weight ?? 1),
    ...(typeof values.trigger_word === "string" ? { trigger_word: values.trigger_word } : {}),
  };
}

/**
 * @param {Graph} graph
 * @param {string} samplerId
 * @param {{node: string, field: string, message: string}[]} faults
 * @returns {Part[]}
 */
function partsOf(graph, samplerId, faults) {
  /** @type {Part[]} */
  const parts = [];
  const image = originOf(graph, samplerId, "image");
  if (image?.kind === "sampler") {
    parts.push({ field: "image", source: "", sampler: image.id });
  } else if (image?.kind === "image-input") {
    addPart(image, "image", image.values.image, "Drop a picture here, or cut the wire.");
  }
  const mask = originOf(graph, samplerId, "mask");
  if (mask) {
    addPart(mask, "mask", mask.values.mask, "Paint over what should be drawn anew, or cut the wire.");
  }
  const references = originOf(graph, samplerId, "references");
  if (references && Array.isArray(references.values.images)) {
    if (!references.values.images.length) {
      addPart(references, "reference_images", null, "Drop pictures here, or cut the wire.");
    }
    for (const source of references.values.images) {
      addPart(references, "reference_images", source, "");
    }
  }
  return parts;

  /** @param {GraphNode} node @param {Part["field"]} field @param {unknown} source @param {string} message */
  function addPart(node, field, source, message) {
    if (typeof source === "string") {
      parts.push({ field, source, sampler: null });
    } else {
      faults.push({ node: node.id, field, message });
    }
  }
}

/** @param {GraphNode | null} node */
function textOf(node) {
  return String(node?.values.text ?? "");
}

/** @param {GenerateBody} body @param {"model" | "backend"} name @param {unknown} value */
function setIfChosen(body, name, value) {
  if (typeof value === "string") {
    body[name] = value;
  }
}
