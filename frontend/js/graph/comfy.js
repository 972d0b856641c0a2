/**
 * Workflows of ComfyUI that use its standard FLUX nodes, in both of its forms: the one it saves
 * (`nodes` and `links`) and the one it sends (`{"3": {class_type, inputs}}`).
 *
 * A workflow is read from its sampler backwards: what is wired to it decides what each part is.
 */

/** @import { Wanted } from "./restore.js" */

/**
 * @typedef {{id: string, type: string, inputs: Record<string, unknown>}} ComfyNode an input is a value, or `{from: id}`
 */

/** Widgets of the saved form have no names: these are their places. @type {Record<string, readonly string[]>} */
const WIDGETS = {
  KSampler: ["seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
  KSamplerAdvanced: ["", "noise_seed", "", "steps", "cfg"],
  CLIPTextEncode: ["text"],
  CLIPTextEncodeFlux: ["clip_l", "t5xxl", "guidance"],
  FluxGuidance: ["guidance"],
  EmptyLatentImage: ["width", "height", "batch_size"],
  EmptySD3LatentImage: ["width", "height", "batch_size"],
  EmptyFlux2LatentImage: ["width", "height", "batch_size"],
  LoraLoader: ["lora_name", "strength_model", "strength_clip"],
  LoraLoaderModelOnly: ["lora_name", "strength_model"],
  UNETLoader: ["unet_name", "weight_dtype"],
  CheckpointLoaderSimple: ["ckpt_name"],
  NunchakuFluxDiTLoader: ["model_path"],
  NunchakuFluxLoraLoader: ["lora_name", "lora_strength"],
  RandomNoise: ["noise_seed"],
  BasicScheduler: ["scheduler", "steps", "denoise"],
  ModelSamplingFlux: ["max_shift", "base_shift", "width", "height"],
};

const SAMPLERS = ["KSampler", "SamplerCustomAdvanced", "KSamplerAdvanced"];

/** Ours for names of files, the first that fits. @type {readonly [RegExp, string][]} */
const MODELS = [
  [/schnell/i, "flux-schnell"],
  [/flux.?1?.?dev|dev/i, "flux-dev"],
];

/** @param {unknown} data */
export function isComfy(data) {
  return nodesFrom(data).size > 0;
}

/**
 * The request of the workflow's first sampler, and what in the file has no counterpart here.
 * Throws, saying why, for a workflow without a sampler that can be read.
 * @param {unknown} data
 * @returns {{wanted: Wanted, leftOut: string[]}}
 */
export function fromComfy(data) {
  const nodes = nodesFrom(data);
  const sampler = [...nodes.values()].find(({ type }) => SAMPLERS.includes(type));
  if (!sampler) {
    throw new Error(`the ComfyUI workflow has none of the samplers ${SAMPLERS.join(", ")}`);
  }
  /** @type {Set<string>} */
  const used = new Set();
  const reader = new Reader(nodes, used);
  const wanted = sampler.type === "SamplerCustomAdvanced" ? customRequest(reader, sampler) : samplerRequest(reader, sampler);
  if (!wanted.prompt) {
    throw new Error("no CLIPTextEncode node leads to the sampler of the ComfyUI workflow");
  }
  const known = /^(VAE|Save|Preview|CLIPLoader|DualCLIPLoader|KSamplerSelect|Note|MarkdownNote|Reroute|PrimitiveNode|ConditioningZeroOut|NunchakuTextEncoderLoader)/;
  const leftOut = [...nodes.values()].filter(({ id, type }) => !used.has(id) && !known.test(type)).map(({ type }) => type);
  return { wanted, leftOut: [...new Set(leftOut)] };
}

class Reader {
  /** @param {Map<string, ComfyNode>} nodes @param {Set<string>} used */
  constructor(nodes, used) {
    this.nodes = nodes;
    this.used = used;
  }

  /** What is wired to an input, through reroutes. @param {ComfyNode | null} node @param {string} input @returns {ComfyNode | null} */
  source(node, input) {
    const value = node?.inputs[input];
    let found = isLink(value) ? (this.nodes.get(value.from) ?? null) : null;
    while (found?.type === "Reroute") {
      const next = Object.values(found.inputs).find(isLink);
      found = next ? (this.nodes.get(next.from) ?? null) : null;
    }
    if (found) {
      this.used.add(found.id);
    }
    return found;
  }

  /** A value, typed in or of a primitive node that is wired to it. @param {ComfyNode | null} node @param {string} input */
  value(node, input) {
    const source = this.source(node, input);
    return source ? Object.values(source.inputs).find((value) => !isLink(value)) : node?.inputs[input];
  }

  /** @param {ComfyNode | null} node @param {string} input */
  number(node, input) {
    const value = this.value(node, input);
    return typeof value === "number" ? value : null;
  }
}

/** @param {Reader} reader @param {ComfyNode} sampler @returns {Wanted} */
function samplerRequest(reader, sampler) {
  reader.used.add(sampler.id);
  const cfg = reader.number(sampler, "cfg");
  const positive = conditioning(reader, reader.source(sampler, "positive"));
  const negative = cfg !== null && cfg > 1 ? conditioning(reader, reader.source(sampler, "negative")) : null;
  return {
    ...positive,
    ...(negative?.prompt ? { negative_prompt: negative.prompt, true_cfg_scale: cfg } : {}),
    num_inference_steps: reader.number(sampler, "steps"),
    seed: reader.number(sampler, "seed") ?? reader.number(sampler, "noise_seed"),
    ...latent(reader, reader.source(sampler, "latent_image")),
    ...modelChain(reader, reader.source(sampler, "model")),
  };
}

/** @param {Reader} reader @param {ComfyNode} sampler @returns {Wanted} */
function customRequest(reader, sampler) {
  reader.used.add(sampler.id);
  const guider = reader.source(sampler, "guider");
  const scheduler = reader.source(sampler, "sigmas");
  const noise = reader.source(sampler, "noise");
  return {
    ...conditioning(reader, reader.source(guider, "conditioning") ?? reader.source(guider, "positive")),
    num_inference_steps: reader.number(scheduler, "steps"),
    seed: reader.number(noise, "noise_seed"),
    ...latent(reader, reader.source(sampler, "latent_image")),
    ...modelChain(reader, reader.source(guider, "model")),
  };
}

/** @param {Reader} reader @param {ComfyNode | null} node @returns {Wanted} */
function conditioning(reader, node) {
  if (node?.type === "FluxGuidance") {
    return { ...conditioning(reader, reader.source(node, "conditioning")), guidance_scale: reader.number(node, "guidance") };
  }
  if (node?.type === "CLIPTextEncodeFlux") {
    return { prompt: String(reader.value(node, "t5xxl") ?? ""), guidance_scale: reader.number(node, "guidance") };
  }
  if (node?.type === "CLIPTextEncode") {
    return { prompt: String(reader.value(node, "text") ?? "") };
  }
  return {};
}

/** @param {Reader} reader @param {ComfyNode | null} node @returns {Wanted} */
function latent(reader, node) {
  return {
    width: reader.number(node, "width"),
    height: reader.number(node, "height"),
    num_images: reader.number(node, "batch_size") ?? 1,
  };
}

/** Loaders of LoRAs up to the loader of the model. @param {Reader} reader @param {ComfyNode | null} node @returns {Wanted} */
function modelChain(reader, node) {
  const loras = [];
  const seen = new Set();
  while (node && !seen.has(node.id)) {
    seen.add(node.id);
    const file = reader.value(node, "unet_name") ?? reader.value(node, "ckpt_name") ?? reader.value(node, "model_path");
    const lora = reader.value(node, "lora_name");
    if (typeof lora === "string") {
      const weight = reader.number(node, "strength_model") ?? reader.number(node, "lora_strength") ?? 1;
      loras.unshift({ name: lora.replace(/^.*[\\/]/, "").replace(/\.safetensors$/, ""), weight });
    }
    if (typeof file === "string") {
      const model = MODELS.find(([pattern]) => pattern.test(file))?.[1] ?? null;
      return { model, ...(loras.length ? { loras } : {}) };
    }
    node = reader.source(node, "model");
  }
  return loras.length ? { loras } : {};
}

/** @param {unknown} data @returns {Map<string, ComfyNode>} */
function nodesFrom(data) {
  const file = asObject(data);
  const nodes = Array.isArray(file.nodes) && Array.isArray(file.links) ? savedNodes(file.nodes, file.links) : sentNodes(file);
  return new Map(nodes.map((node) => [node.id, node]));
}

/** @param {Record<string, unknown>} file @returns {ComfyNode[]} */
function sentNodes(file) {
  return Object.entries(file).flatMap(([id, data]) => {
    const { class_type: type, inputs } = asObject(data);
    if (typeof type !== "string") {
      return [];
    }
    const values = Object.entries(asObject(inputs)).map(([name, value]) => [name, Array.isArray(value) ? { from: String(value[0]) } : value]);
    return [{ id, type, inputs: Object.fromEntries(values) }];
  });
}

/** @param {readonly unknown[]} nodes @param {readonly unknown[]} links @returns {ComfyNode[]} */
function savedNodes(nodes, links) {
  /** @type {Map<unknown, string>} */
  const origins = new Map(links.flatMap((link) => (Array.isArray(link) ? [[link[0], String(link[1])]] : [])));
  return nodes.flatMap((data) => {
    const { id, type, mode, inputs, widgets_values: widgets } = asObject(data);
    const isOff = mode === 2 || mode === 4; // muted, bypassed
    if (typeof type !== "string" || isOff) {
      return [];
    }
    /** @type {Record<string, unknown>} */
    const values = {};
    const names = WIDGETS[type] ?? [];
    (Array.isArray(widgets) ? widgets : []).forEach((value, index) => {
      values[names[index] || `widget ${index}`] = value;
    });
    for (const input of Array.isArray(inputs) ? inputs : []) {
      const { name, link } = asObject(input);
      const from = origins.get(link);
      if (typeof name === "string" && from !== undefined) {
        values[name] = { from };
      }
    }
    return [{ id: String(id), type, inputs: values }];
  });
}

/** @param {unknown} value @returns {value is {from: string}} */
function isLink(value) {
  return typeof value === "object" && value !== null && "from" in value;
}

/** @param {unknown} value @returns {Record<string, unknown>} */
function asObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : {};
}
