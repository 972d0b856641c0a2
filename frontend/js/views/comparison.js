/** A Compare node, large. */

import {find} from "../dom.js";
import {mountCompare} from "../nodes/compare.js";
import {contextOf} from "../nodes/nodes.js";

/** @type {Fn.showComparison} */
export function showComparison(app, id) {
	const node = app.editor.graph.nodes[id];
	const dialog = find("dialog#comparison");
	const body = find("#comparison-body");
	if (!node || dialog.open) return;
	const {context, end} = contextOf(app, node, "form");
	mountCompare(body, context);
	find("#comparison-close").onclick = () => dialog.close();
	dialog.onclose = () => {
		end();
		body.replaceChildren();
		app.store.set({compared: null});
	};
	dialog.showModal();
	find(".cut", body).focus();
}
