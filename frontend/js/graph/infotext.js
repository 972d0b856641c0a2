/** The text that A1111 and its relatives write into pictures. */

/** @import { Wanted } from "./restore.js" */

const LORA = /<lora:([^:>]+)(?::(-?[\d.]+))?[^>]*>/g;

/**
 * @param {string} text
 * @returns {Wanted | null} null when it is no such text
 */
export function fromInfotext(text) {
  const lines = text.trim().split("\n");
  const facts = lines.at(-1) ?? "";
  if (!/(^|, )Steps: \d+/.test(facts)) {
    return null;
  }
  const words = lines.slice(0, -1);
  const negativeAt = words.findIndex((line) => line.startsWith("Negative prompt:"));
  const promptLines = negativeAt < 0 ? words : words.slice(0, negativeAt);
  const negative = negativeAt < 0 ? "" : words.slice(negativeAt).join("\n").slice("Negative prompt:".length).trim();
  const values = factsOf(facts);
  const prompt = promptLines.join("\n");
  const loras = [...prompt.matchAll(LORA)].map(([, name = "", weight]) => ({ name, weight: weight === undefined ? 1 : Number(weight) }));
  const size = /^(\d+)x(\d+)$/.exec(values.get("Size") ?? "");
  const scale = numberOf(values.get("CFG scale"));
  return {
    prompt: prompt.replaceAll(LORA, "").trim(),
    ...(negative ? { negative_prompt: negative, true_cfg_scale: scale } : {}),
    num_inference_steps: numberOf(values.get("Steps")),
    guidance_scale: numberOf(values.get("Distilled CFG Scale")),
    seed: numberOf(values.get("Seed")),
    width: size ? Number(size[1]) : null,
    height: size ? Number(size[2]) : null,
    model: values.get("Model") ?? null,
    ...(loras.length ? { loras } : {}),
  };
}

/** `Steps: 4, Lora hashes: "a: 1, b: 2", Seed: 7` @param {string} line */
function factsOf(line) {
  /** @type {Map<string, string>} */
  const values = new Map();
  for (const [, name = "", value = ""] of line.matchAll(/([A-Z][\w /-]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g)) {
    values.set(name.trim(), value.replace(/^"|"$/g, "").trim());
  }
  return values;
}

/** @param {string | undefined} text */
function numberOf(text) {
  const number = Number(text);
  return text === undefined || text === "" || !Number.isFinite(number) ? null : number;
}
