/** Nodes of words beside the Prompt: the Negative prompt, and the Note. */

import {make} from "../dom.js";
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
	const misfit = make("p.hint.warning");
	context.watch(state => [modelAfter(state, context.id)], model => {
		misfit.hidden = model?.takes_negative_prompt !== false;
		misfit.textContent = `${model?.title} takes no negative prompt.`;
	});
	body.append(box, misfit, numberField(context, {name: "true_cfg_scale", label: "Strength (true CFG)", fallback}));
}

/** @type {MountNode} */
export function mountNote(body, context) {
	body.append(textField(context, {name: "text", label: "Note", rows: 4, placeholder: "Words for whoever opens this"}).box);
}
