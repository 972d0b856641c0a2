/** From what is typed to a request, and back. */

/** @import { GenerateBody, GenerationRequest, Model } from "../types/api" */
/** @import { Draft, DraftNumber, ServiceState } from "../types/state" */

/** @type {DraftNumber[]} */
const NUMBERS = ["width", "height", "num_inference_steps", "num_images"];

/**
 * The model that draws: the chosen one, else the service's default. Null before the list is known.
 * @param {Draft} draft
 * @param {ServiceState} service
 * @returns {Model | null}
 */
export function modelOf(draft, { models, info }) {
  const wanted = draft.model ?? info?.default_model;
  return models.find((model) => model.id === wanted) ?? null;
}

/**
 * What a field of the form holds: what was typed, else the model's default.
 * @param {Draft} draft
 * @param {DraftNumber} name
 * @param {Model | null} model
 */
export function valueOf(draft, name, model) {
  const typed = draft[name];
  if (typed !== null) {
    return typed;
  }
  if (name === "num_images") {
    return "1";
  }
  return model ? String(model.defaults[name]) : "";
}

/**
 * What was typed and nothing else: the service fills in the rest. It also judges the values, so a
 * number out of range is sent as it is.
 * @param {Draft} draft
 * @param {Model | null} model
 * @returns {GenerateBody}
 */
export function bodyOf(draft, model) {
  /** @type {GenerateBody} */
  const body = { prompt: draft.prompt, output_format: draft.output_format };
  if (draft.model !== null) {
    body.model = draft.model;
  }
  const numbers = [...NUMBERS];
  if (draft.negative_prompt.trim()) {
    body.negative_prompt = draft.negative_prompt;
    numbers.push("true_cfg_scale");
  }
  if (model?.uses_guidance_scale) {
    numbers.push("guidance_scale");
  }
  for (const name of numbers) {
    const typed = draft[name];
    if (typed !== null && typed.trim()) {
      body[name] = Number(typed);
    }
  }
  if (draft.seed_mode === "fixed" && draft.seed.trim()) {
    body.seed = Number(draft.seed);
  }
  return body;
}

/**
 * The form as it was for a request, with the seed of one of its pictures.
 * @param {GenerationRequest} request
 * @param {number} seed
 * @returns {Draft}
 */
export function draftOf(request, seed) {
  return {
    prompt: request.prompt,
    negative_prompt: request.negative_prompt ?? "",
    model: request.model,
    width: String(request.width),
    height: String(request.height),
    num_inference_steps: String(request.num_inference_steps),
    guidance_scale: String(request.guidance_scale),
    true_cfg_scale: String(request.true_cfg_scale),
    seed_mode: "fixed",
    seed: String(seed),
    num_images: null,
    output_format: request.output_format,
  };
}

/** A new idempotency key. `crypto.randomUUID` is missing on pages served without TLS by name. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** A seed to hold on to, when a fixed one is asked for and no picture has given one. */
export function newSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
