/** Graphs to begin with. */

import {SERVICE_NAMES} from "../config.js";
import {Builder, graphOf} from "./restore.js";

/** @type {Fn.firstGraph} */
export function firstGraph(service) {
	return graphOf({}, service);
}

/**
 * The built-in examples. `service` draws where one is enough.
 * @type {readonly {name: string, about: string, build: (service: string) => Graph}[]}
 */
export const EXAMPLES = [
	{
		name: "Four at once",
		about: "One prompt, four seeds, landscape",
		build: service => graphOf({prompt: "a red balloon on the left over green hills at sunset", num_images: 4, width: 288, height: 224, seed: 7}, service)
	},
	{
		name: "Keep something away",
		about: "A negative prompt beside the prompt",
		build: service => graphOf({prompt: "three stars over a desert at night", negative_prompt: "a house", true_cfg_scale: 3, seed: 11}, service)
	},
	{
		name: SERVICE_NAMES.map(name => name.toUpperCase()).join(" against "),
		about: "The same seed at both precisions, compared",
		build: () => {
			const builder = new Builder();
			const [one, other] = SERVICE_NAMES.map((service, i) => builder.node("model", 0, i * 430, {service}));
			const prompt = builder.node("prompt", 0, 860, {text: "a blue house on the right in front of a wheat field at dawn"});
			const values = {seed_mode: "fixed", seed: 3};
			const first = builder.node("sampler", 388, 0, values);
			const second = builder.node("sampler", 388, 590, values);
			const compare = builder.node("compare", 744, 160);
			builder.wire(`${one}.model`, `${first}.model`).wire(`${other}.model`, `${second}.model`);
			builder.wire(`${prompt}.text`, `${first}.prompt`).wire(`${prompt}.text`, `${second}.prompt`);
			builder.wire(`${first}.image`, `${compare}.a`).wire(`${second}.image`, `${compare}.b`);
			return builder.graph;
		}
	}
];
