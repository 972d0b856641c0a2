/** A question that must be answered before something is gone. */

import {find} from "../dom.js";

/** @type {Fn.confirmed} */
export function confirmed(question) {
	const dialog = find("dialog#confirm");
	find("#confirm-text").textContent = question;
	dialog.returnValue = "no";
	dialog.showModal();
	return new Promise(resolve => {
		dialog.addEventListener("close", function onClose() {
			// The event comes a moment after the closing: one of the question before may come now.
			if (dialog.open) return;
			dialog.removeEventListener("close", onClose);
			resolve(dialog.returnValue === "yes");
		});
	});
}
