/** From a request back to the graph that asks for it. */

/** @import { Graph, NodeKind, Value } from "../../types/graph" */

import { EMPTY_GRAPH, freeIds, newNode } from "./graph.js";
import { NODE_TYPES } from "./table.js";

/**
 * A request in our words, from wherever it comes. What is missing is left to the model.
 * @typedef {object} Wanted
 * @property {string} [prompt]
 * @property {string | null} [negative_prompt]
 * @property {string | null} [model]
 * @property {string | null} [backend]
 * @property {number | null} [width]
 * @property {number | null} [height]
 * @property {number | null} [num_inference_steps]
 * @property {number | null} [guidance_scale]
 * @property {number | null} [true_cfg_scale]
 * @property {number | null} [seed]
 * @property {number | null} [num_images]
 * @property {string} [output_format]
 * @property {string | null} [image] an id, or a picture of the page
 * @property {number | null} [strength]
 * @property {readonly {name: string, weight?: number, trigger_word?: string | null}[]} [loras]
 */

/** Builds graphs by hand: nodes get ids in the order in which they come. */
export class Builder {
  /** @type {Graph} */
  #graph;
  #nodeId;
  #wireId;

  /** @param {Graph} [graph] */
  constructor(graph = EMPTY_GRAPH) {
    this.#graph = graph;
    this.#nodeId = freeIds(graph, "nodes");
    this.#wireId = freeIds(graph, "wires");
  }

  get graph() {
    return this.#graph;
  }

  /** @param {NodeKind} kind @param {number} x @param {number} y @param {Record<string, Value>} [values] @returns {string} its id */
  node(kind, x, y, values = {}) {
    const id = this.#nodeId();
    this.#graph = { ...this.#graph, nodes: { ...this.#graph.nodes, [id]: newNode(id, kind, { x, y }, values) } };
    return id;
  }

  /** @param {string} from "n1.model" @param {string} to "n4.model" */
  wire(from, to) {
    const id = this.#wireId();
    this.#graph = { ...this.#graph, wires: { ...this.#graph.wires, [id]: { id, from: end(from), to: end(to) } } };
    return this;
  }
}

/**
 * The graph of one request.
 * @param {Wanted} wanted
 * @param {string} service
 * @returns {Graph}
 */
export function graphOf(wanted, service) {
  const builder = new Builder();
  const loras = wanted.loras ?? [];
  const left = loras.length ? NODE_TYPES.lora.width + 64 : 0;
  const model = builder.node("model", left, 0, {
    service,
    backend: wanted.backend ?? null,
    model: wanted.model ?? null,
  });
  const prompt = builder.node("prompt", left, 400, { text: wanted.prompt ?? "" });
  const sampler = builder.node("sampler", left + 388, 0, {
    width: wanted.width ?? null,
    height: wanted.height ?? null,
    num_inference_steps: wanted.num_inference_steps ?? null,
    guidance_scale: wanted.guidance_scale ?? null,
    seed_mode: typeof wanted.seed === "number" ? "fixed" : "random",
    seed: wanted.seed ?? null,
    num_images: wanted.num_images ?? 1,
    output_format: wanted.output_format ?? "png",
  });
  const image = builder.node("image", left + 744, 0);
  builder.wire(`${model}.model`, `${sampler}.model`).wire(`${prompt}.text`, `${sampler}.prompt`).wire(`${sampler}.image`, `${image}.image`);
  if (wanted.negative_prompt) {
    const values = { text: wanted.negative_prompt, true_cfg_scale: wanted.true_cfg_scale ?? null };
    builder.wire(`${builder.node("negative", left, 810, values)}.text`, `${sampler}.negative`);
  }
  loras.forEach(({ name, weight, trigger_word }, index) => {
    const values = { name, weight: weight ?? 1, trigger_word: trigger_word ?? null };
    builder.wire(`${builder.node("lora", 0, index * 330, values)}.lora`, `${model}.loras`);
  });
  if (wanted.image) {
    const values = { image: wanted.image, strength: wanted.strength ?? 0.6 };
    builder.wire(`${builder.node("image-input", left, wanted.negative_prompt ? 1080 : 810, values)}.image`, `${sampler}.image`);
  }
  return builder.graph;
}

/** Values of a request as a client or a file gives it; what is of the wrong type is left out. @param {unknown} data @returns {Wanted} */
export function wantedFrom(data) {
  const given = typeof data === "object" && data !== null ? /** @type {Record<string, unknown>} */ ({ ...data }) : {};
  /** @type {Record<string, unknown>} */
  const wanted = {};
  for (const name of ["prompt", "negative_prompt", "model", "backend"]) {
    if (typeof given[name] === "string") {
      wanted[name] = given[name];
    }
  }
  for (const name of ["width", "height", "num_inference_steps", "guidance_scale", "true_cfg_scale", "seed", "num_images", "strength"]) {
    if (typeof given[name] === "number" && Number.isFinite(given[name])) {
      wanted[name] = given[name];
    }
  }
  if (["png", "jpeg", "webp"].includes(String(given.output_format))) {
    wanted.output_format = given.output_format;
  }
  if (Array.isArray(given.loras)) {
    wanted.loras = given.loras.flatMap(loraFrom);
  }
  return wanted;
}

/** @param {unknown} data */
function loraFrom(data) {
  const lora = typeof data === "object" && data !== null ? /** @type {Record<string, unknown>} */ ({ ...data }) : {};
  const words = Array.isArray(lora.trigger_words) ? lora.trigger_words : [lora.trigger_word];
  // Several words are the LoRA's own: a request names at most one.
  const word = words.length === 0 ? "" : words.length === 1 ? words[0] : null;
  return typeof lora.name === "string"
    ? [{ name: lora.name, weight: typeof lora.weight === "number" ? lora.weight : 1, ...(typeof word === "string" ? { trigger_word: word } : {}) }]
    : [];
}

/** @param {string} text */
function end(text) {
  const [node = "", socket = ""] = text.split(".");
  return { node, socket };
}
