/** What the keys do. */

import {find, make} from "../dom.js";

/** @type {Readonly<Record<string, Readonly<Record<string, string>>>>} */
const KEYS = {
	Draw: {
		"Ctrl Enter": "Run",
		Enter: "Run, in a prompt",
		"Shift Enter": "A new line, in a prompt",
		Escape: "Close what is open; select nothing"
	},
	Edit: {
		"Ctrl Z": "Undo",
		"Ctrl Shift Z": "Redo",
		"Ctrl C": "Copy",
		"Ctrl X": "Cut",
		"Ctrl V": "Paste; a picture, too",
		"Ctrl D": "Duplicate",
		"Ctrl A": "Select everything",
		Del: "Delete; cut the selected wire",
		Arrows: "Move the selected nodes"
	},
	Canvas: {
		"A or double click": "Add a node",
		Tab: "Next node, socket or field",
		Enter: "Wire, on a socket",
		F: "Fit everything",
		"+  −  0": "Zoom in, out, actual size",
		C: "Collapse",
		"Shift drag": "Select with a box",
		"Space drag": "Move the view"
	},
	Look: {
		G: "Gallery",
		L: "LoRAs",
		Q: "Queue",
		M: "Machine",
		W: "Workflows",
		V: "Canvas or form",
		P: "Pin the picture that is looked at",
		"?": "This list"
	}
};

export function showHelp() {
	const dialog = find("dialog#help");
	find("#help-keys").replaceChildren(
		...Object.entries(KEYS).map(([title, rows]) =>
			make("section", make("h3", title), make("dl", ...Object.entries(rows).map(([keys, words]) => make("div", make("dt", ...keysOf(keys)), make("dd", words)))))
		)
	);
	find("button#help-close").onclick = () => dialog.close();
	dialog.showModal();
}

/** @param {string} keys */
function keysOf(keys) {
	const isMac = /Mac|iPhone|iPad/.test(navigator.userAgent);
	return keys
		.split(" ")
		.filter(Boolean)
		.map(key => (/^[a-z]/.test(key) ? `${key} ` : make("kbd", isMac && key === "Ctrl" ? "⌘" : key)));
}
