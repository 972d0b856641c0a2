/** The panel at the side: one of its parts at a time. */

import {button, find, make} from "../dom.js";
import {whenRead} from "../lazy.js";
import {PANELS} from "./topbar.js";

/** @type {Fn.mountPanel} */
export function mountPanel(app, onOpened, parts) {
	const {store} = app;
	const panel = find("#panel");
	/** Those that were not opened yet. @type {Map<string, HTMLElement>} */
	const bodies = new Map();
	for (const [name, words] of Object.entries(PANELS)) {
		const body = make("div.panel-body");
		const close = button({label: `Close ${words}`, icon: "close", kind: "bare", act: () => store.set({panel: null})});
		panel.append(make("section.part", {id: `panel-${name}`, "aria-label": words, tabindex: -1, hidden: true}, make("header.panel-head", make("h2", words), close), body));
		bodies.set(name, body);
	}
	/** What had the focus before. @type {Element | null} */
	let before = null;
	store.watch(state => [state.panel], now => {
		const focused = document.activeElement;
		const isInside = panel.contains(focused);
		if (now && !isInside) before = focused;
		panel.hidden = now === null;
		const body = now && bodies.get(now);
		if (body) {
			bodies.delete(now);
			whenRead(store, parts[now](), mount => mount(app, body, onOpened));
		}
		for (const part of panel.children) part.toggleAttribute("hidden", part.id !== `panel-${now}`);
		// The Tab key goes on in the panel, and afterwards where it was.
		const target = now ? find(`#panel-${now}`) : isInside && before;
		if (target instanceof HTMLElement) target.focus({preventScroll: true});
	});
}
