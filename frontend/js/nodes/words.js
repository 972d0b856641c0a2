/** Nodes of words beside the Prompt: the Negative prompt, and the Note. */

import {modelAfter} from "../models.js";
import {numberField, textField} from "./fields.js";

/** @type {MountNode} */
export function mountNegative(body, context) {
	const {box} = textField(context, {
		name: "text",
		label: "What should it keep away from?",
		rows: 2,
		placeholder: "nothing; a step takes twice as long with one",
		errors: ["negative_prompt"]
	});
	const fallback = (/** @type {State} */ state) => modelAfter(state, context.id)?.defaults.true_cfg_scale ?? null;
	body.append(box, numberField(context, {name: "true_cfg_scale", label: "Strength (true CFG)", fallback}));
}

/** @type {MountNode} */
export function mountNote(body, context) {
	body.append(textField(context, {name: "text", label: "Note", rows: 4, placeholder: "Words for whoever opens this"}).box);
}
