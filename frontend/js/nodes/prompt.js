/** The Prompt node, with examples while it is empty. */

import {keep, make} from "../dom.js";
import {modelAfter} from "../models.js";
import {textField} from "./fields.js";

/** @type {MountNode} */
export function mountPrompt(body, context) {
	const {box, area} = textField(context, {
		name: "text",
		label: "What should the picture show?",
		rows: 3,
		placeholder: "a red balloon over green hills at sunset",
		errors: ["prompt"]
	});
	area.dataset.role = "prompt";
	area.enterKeyHint = "go";
	area.onkeydown = event => {
		const isPlain = !event.shiftKey && !event.altKey && !event.ctrlKey && !event.metaKey && !event.isComposing;
		if (event.key === "Enter" && isPlain) {
			event.preventDefault();
			context.app.runs.start();
		}
	};
	const examples = make("div.examples", {role: "group", "aria-label": "Example prompts"});
	context.watch(state => [modelAfter(state, context.id)], model => keep(examples, model?.example_prompts.slice(0, 3) ?? [], String, example));
	body.append(box, examples, make("p.hint.keys", "Enter draws · Shift+Enter begins a new line"));

	/** @param {string} text */
	function example(text) {
		const use = () => {
			context.set({text});
			area.focus({preventScroll: true});
		};
		return make("button.example", {onclick: use}, text);
	}
}
