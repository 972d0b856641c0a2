/** What is dropped anywhere on the page, copied or pasted. */

import {find, isTyping} from "./dom.js";

/** @type {Fn.mountDrops} */
export function mountDrops({store, editor, opener}, canvas) {
	const veil = find("#veil");
	/** @type {Timer} */
	let timer;
	document.addEventListener("dragover", event => {
		if (!event.dataTransfer?.types.includes("Files")) return;
		event.preventDefault();
		veil.hidden = false;
		clearTimeout(timer);
		timer = setTimeout(() => (veil.hidden = true), 200); // while the pointer is here the event comes again and again
	});
	document.addEventListener("drop", event => {
		const files = [...(event.dataTransfer?.files ?? [])];
		veil.hidden = true;
		if (!files.length || event.defaultPrevented) return;
		event.preventDefault();
		const target = event.target instanceof Element ? event.target : null;
		const isOnGround = store.state.view === "canvas" && target && canvas.element.contains(target) && !target.closest(".node");
		void opener.open(files, isOnGround ? canvas.placeOf(event) : null);
	});
	const isOfNodes = (/** @type {EventTarget | null} */ target) => store.state.view === "canvas" && !isTyping(target);
	for (const kind of /** @type {const} */ (["copy", "cut"])) {
		document.addEventListener(kind, event => {
			// Text that is marked is copied as everywhere.
			if (!isOfNodes(event.target) || !document.getSelection()?.isCollapsed || document.querySelector("dialog[open]")) return;
			const text = editor.copied();
			if (!text) return;
			event.preventDefault();
			event.clipboardData?.setData("text/plain", text);
			store.say("Copied.");
			if (kind === "cut") editor.deleteSelected();
		});
	}
	document.addEventListener("paste", event => {
		if (document.querySelector("dialog[open]")) return;
		const {clipboardData, target} = event;
		const files = [...(clipboardData?.files ?? [])];
		if (files.length) {
			event.preventDefault();
			void opener.open(files);
		} else if (isOfNodes(target)) {
			try {
				editor.paste(clipboardData?.getData("text/plain") ?? "");
			} catch {
				store.say("What was copied is no node of this page.");
			}
		}
	});
}
