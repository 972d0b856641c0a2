/** Workflows: save, open, examples. Named ones are kept in the browser, and nowhere else. */

import {button, chooseFiles, find, keep, make} from "../dom.js";
import {messageOf, moment} from "../format.js";
import {EXAMPLES, firstGraph} from "../graph/starters.js";
import {serialise} from "../graph/workflow.js";
import {save} from "../pictures.js";
import {firstService} from "../services.js";
import {confirmed} from "./confirm.js";

const PREFIX = "flux workflow ";

/** @type {Fn.mountWorkflows} */
export function mountWorkflows({store, editor, opener}, panel, onOpened) {
	const title = "Name of this workflow";
	const name = make("input", {type: "text", maxlength: 100, placeholder: title, "aria-label": title});
	const list = make("ul.library", {id: "saved-workflows"});
	const note = make("p.hint");
	const form = make("form.row", name, make("button.quiet", {type: "submit"}, "Save"));
	form.onsubmit = event => {
		event.preventDefault();
		keepHere(name.value.trim() || "Untitled");
	};
	/** @type {Fn.open} */
	const open = (build, label, workflow) => {
		editor.replace(build(firstService(store.state)), label, workflow);
		onOpened();
	};
	const text = () => JSON.stringify(serialise(editor.graph, store.state.workflow), null, 2);
	const saveFile = () => save(new Blob([text()], {type: "application/json"}), `${(store.state.workflow || "workflow").replace(/[^\p{L}\p{N} _-]/gu, "")}.json`);
	const examples = EXAMPLES.map(({name: words, about, build}) => row(words, about, () => open(build, `open ${words}`, words)));
	panel.append(
		form,
		make(
			"div.row",
			button({words: "New", icon: "plus", act: () => open(firstGraph, "new workflow")}),
			button({words: "Open a file", icon: "upload", act: async () => opener.open(await chooseFiles(".json,.png,.jpg,.jpeg,.webp"))}),
			button({words: "Save as a file", icon: "download", act: saveFile})
		),
		make("h3", "In this browser"),
		note,
		list,
		make("h3", "Examples"),
		make("ul.library", ...examples)
	);
	store.watch(({workflow}) => [workflow], now => void (name.value = now));
	render();

	/** @param {string} workflow */
	function keepHere(workflow) {
		store.set({workflow});
		try {
			localStorage.setItem(PREFIX + workflow, JSON.stringify({saved: new Date().toISOString(), text: text()}));
			store.say(`${workflow} is saved in this browser.`);
		} catch {
			store.say("The browser keeps nothing here. Save it as a file.");
		}
		render();
	}

	function render() {
		const saved = savedWorkflows();
		note.textContent = saved.length ? "" : "Saved workflows are listed here.";
		keep(list, saved, each => each.title, card, (element, {when, count}) => void (find(".hint", element).textContent = `${count} nodes · ${when}`));
	}

	/** @type {Fn.card} */
	function card({title: words}) {
		const openIt = async () => {
			try {
				await opener.openText(savedWorkflows().find(each => each.title === words)?.text ?? "", words);
			} catch (error) {
				store.say(`${words} was not opened: ${messageOf(error)}.`);
			}
		};
		const remove = async () => {
			if (await confirmed(`Delete the workflow ${words} from this browser?`)) {
				localStorage.removeItem(PREFIX + words);
				render();
			}
		};
		return row(words, "", openIt, button({label: `Delete ${words}`, icon: "delete", kind: "bare", act: () => void remove()}));
	}
}

/** @type {Fn.workflowsRow} */
function row(title, about, act, ...more) {
	return make("li.lora", make("p.lora-name", title), make("p.hint", about), make("div.row", button({label: `Open ${title}`, words: "Open", act}), ...more));
}

/** @type {Fn.savedWorkflows} */
function savedWorkflows() {
	try {
		const keys = Object.keys(localStorage)
			.filter(key => key.startsWith(PREFIX))
			.sort();
		return keys.flatMap(key => {
			const {saved, text} = JSON.parse(localStorage.getItem(key) ?? "{}");
			return typeof text === "string" ? [{title: key.slice(PREFIX.length), when: moment(saved), count: JSON.parse(text).nodes.length, text}] : [];
		});
	} catch {
		return []; // storage is off, or holds what another program wrote
	}
}
