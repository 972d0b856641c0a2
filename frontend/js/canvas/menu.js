/** A list at the pointer: to search in, to walk through with the arrow keys, to leave with Escape. */

import {find, icon, make, newId} from "../dom.js";

/** @type {(() => void) | null} */
let closeOpen = null;

/** @param {MenuOptions} options */
export function openMenu({at, label, items, search = false}) {
	closeOpen?.();
	const before = document.activeElement;
	const id = newId();
	const filter = make("input.menu-search", {
		type: "text",
		placeholder: "Search",
		"aria-label": label,
		role: "combobox",
		"aria-expanded": "true",
		"aria-controls": id,
		autocomplete: "off",
		spellcheck: "false"
	});
	const list = make("ul", {role: search ? "listbox" : "menu", id, "aria-label": label});
	const menu = make("div.menu", ...(search ? [filter] : []), list);
	const hasMarks = items.some(({type, icon: name}) => type || name);
	let shown = items;
	let current = 0;

	const close = () => {
		if (!menu.isConnected) return;
		menu.remove();
		document.removeEventListener("pointerdown", outside, true);
		closeOpen = null;
		if (before instanceof HTMLElement && (document.activeElement ?? document.body) === document.body) before.focus({preventScroll: true});
	};
	const outside = (/** @type {Event} */ {target}) => {
		if (!(target instanceof Node && menu.contains(target))) close();
	};
	const choose = (/** @type {MenuItem | undefined} */ item) => {
		if (!item) return;
		close();
		item.act();
	};
	const render = () => {
		const wanted = filter.value.trim().toLowerCase();
		shown = items.filter(({words, hint = ""}) => `${words} ${hint}`.toLowerCase().includes(wanted));
		current = Math.min(current, Math.max(0, shown.length - 1));
		list.replaceChildren(...(shown.length ? shown.map(row) : [make("li.menu-none", "Nothing found")]));
		mark();
	};
	const mark = () => {
		const rows = [...list.querySelectorAll("[data-index]")];
		rows.forEach((each, index) => {
			each.setAttribute("data-current", String(index === current));
			if (search) each.ariaSelected = String(index === current); // an option has it, an item of a menu the focus
		});
		const now = rows[current];
		now?.scrollIntoView({block: "nearest"});
		if (search) filter.setAttribute("aria-activedescendant", now?.id ?? "");
		else if (now instanceof HTMLElement) now.focus({preventScroll: true});
	};

	/** @type {Fn.menuRow} */
	function row(item, index) {
		const {type, words, hint, keys} = item;
		const point = () => {
			if (current === index) return;
			current = index;
			mark();
		};
		return make(
			"li",
			{role: search ? "option" : "menuitem", id: newId(), "data-index": index, tabindex: -1, "data-type": type ?? false},
			{onclick: () => choose(item), onpointermove: point},
			type ? make("span.dot") : item.icon ? icon(item.icon) : hasMarks && make("span.icon"),
			make("span.menu-words", words),
			hint ? make("small", hint) : "",
			keys ? make("kbd", keys) : ""
		);
	}

	filter.oninput = () => {
		current = 0;
		render();
	};
	menu.onkeydown = event => {
		const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
		if (step) {
			current = (current + step + shown.length) % Math.max(1, shown.length);
			mark();
		} else if (event.key === "Enter" || (event.key === " " && !search)) choose(shown[current]);
		else if (event.key === "Escape" || event.key === "Tab") close();
		else return;
		event.preventDefault();
		event.stopPropagation();
	};
	document.body.append(menu);
	closeOpen = close;
	render();
	const {width, height} = menu.getBoundingClientRect();
	menu.style.left = `${Math.max(8, Math.min(at.x, innerWidth - width - 8))}px`;
	menu.style.top = `${Math.max(8, Math.min(at.y, innerHeight - height - 8))}px`;
	(search ? filter : find("[data-index]", list)).focus({preventScroll: true});
	document.addEventListener("pointerdown", outside, true);
}
