/** The text that A1111 and its relatives write into pictures. */

const LORA = /<lora:([^:<>]+)(?::(-?[\d.]+))?[^<>]*>/g;
const NEGATIVE = "Negative prompt:";

/** @type {Fn.fromInfotext} */
export function fromInfotext(text) {
	const words = text.trim().split("\n");
	const facts = words.pop() ?? "";
	if (!/(^|, )Steps: \d+/.test(facts)) return null;
	const negativeAt = words.findIndex(line => line.startsWith(NEGATIVE));
	const negative = negativeAt < 0 ? "" : words.splice(negativeAt).join("\n").slice(NEGATIVE.length).trim();
	const prompt = words.join("\n");
	const values = factsOf(facts);
	/** @param {string} name */
	const number = name => {
		const value = values.get(name);
		return value && Number.isFinite(Number(value)) ? Number(value) : null;
	};
	const loras = [...prompt.matchAll(LORA)].map(([, name = "", weight = 1]) => ({name, weight: Number(weight)}));
	const size = /^(\d+)x(\d+)$/.exec(values.get("Size") ?? "");
	return {
		prompt: prompt.replaceAll(LORA, "").trim(),
		...(negative && {negative_prompt: negative, true_cfg_scale: number("CFG scale")}),
		num_inference_steps: number("Steps"),
		guidance_scale: number("Distilled CFG Scale"),
		seed: number("Seed"),
		width: size && Number(size[1]),
		height: size && Number(size[2]),
		model: values.get("Model") ?? null,
		...(loras.length && {loras})
	};
}

/** `Steps: 4, Lora hashes: "a: 1, b: 2", Seed: 7` @param {string} line */
function factsOf(line) {
	const pairs = line.matchAll(/([A-Z][\w /-]{0,60}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g);
	return new Map(Array.from(pairs, ([, name = "", value = ""]) => [name.trim(), value.replace(/^"|"$/g, "").trim()]));
}
