/** The one way to the document. Text goes in as text: there is no way here to insert markup. */

import {ICONS} from "./icons.js";

const SVG = "http://www.w3.org/2000/svg";

/** @type {Fn.find} */
export function find(selector, root = document) {
	const found = root.querySelector(selector);
	if (found) return /** @type {any} */ (found);
	throw new Error(`${selector} is missing`);
}

/**
 * A new element: `make("p.hint", {title: "…"}, child, "text")`. What is `false` is left out, a function is what an event does.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K | `${K}.${string}`} tag
 * @param {...(Node | string | false | Attributes)} parts
 */
export function make(tag, ...parts) {
	const [name, ...classes] = tag.split(".");
	const element = document.createElement(/** @type {K} */ (name));
	element.classList.add(...classes);
	if (name === "button") element.setAttribute("type", "button");
	for (const part of parts) {
		if (typeof part === "string" || part instanceof Node) element.append(part);
		else if (part) setAll(element, part);
	}
	return element;
}

/** @type {Fn.setAll} */
function setAll(element, attributes) {
	for (const [name, value] of Object.entries(attributes)) {
		if (typeof value === "function") Object.assign(element, {[name]: value});
		else if (name.startsWith("on") || name === "style") throw new Error(`${name} is no attribute to set here`);
		else if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
	}
}

/** @type {Fn.icon} */
export function icon(name, svg = document.createElementNS(SVG, "svg")) {
	setAll(svg, {class: "icon", "aria-hidden": "true", viewBox: "0 0 20 20"});
	(ICONS[name] ?? "").split("|").forEach((d, index) => {
		const path = document.createElementNS(SVG, "path");
		setAll(path, {d, class: index ? "filled" : "lines"});
		svg.append(path);
	});
	return svg;
}

/** @type {Fn.button} */
export function button({words = "", label = words, icon: name, kind = "quiet", act}) {
	return make("button", {class: kind, onclick: act}, name ? icon(name) : "", words, words !== label && {"aria-label": label, title: label});
}

let lastId = 0;

/** An id that no other element has. */
export const newId = () => `e${++lastId}`;

/** @type {Fn.isTyping} */
export function isTyping(target) {
	return target instanceof Element && target.matches("textarea, select, input:not([type=checkbox], [type=radio], [type=button], [type=range])");
}

/** The first field of a node, as soon as its body is there. @param {Element | null} node */
export function focusFirstField(node) {
	const body = node?.querySelector(".node-body");
	const field = body?.querySelector("textarea, select, input");
	const target = field ?? node;
	if (target instanceof HTMLElement) target.focus({preventScroll: true});
	if (body && !field && !body.children.length) {
		const focused = document.activeElement;
		new MutationObserver((_, observer) => {
			observer.disconnect();
			if (document.activeElement === focused) focusFirstField(node);
		}).observe(body, {childList: true});
	}
}

/** `navigator.clipboard` is missing on pages served without TLS by name. @param {string} text */
export async function copyText(text) {
	try {
		await navigator.clipboard.writeText(text);
		return true;
	} catch {
		const before = document.activeElement;
		const field = make("textarea.unseen", {"aria-hidden": "true"});
		field.value = text;
		(document.querySelector("dialog[open]") ?? document.body).append(field);
		field.select();
		const isDone = document.execCommand("copy");
		field.remove();
		if (before instanceof HTMLElement) before.focus();
		return isDone;
	}
}

/** Asks for files. @type {Fn.chooseFiles} */
export function chooseFiles(accept, many = false) {
	return new Promise(resolve => {
		const input = make("input.unseen", {type: "file", accept, multiple: many, "aria-label": "Files"});
		input.onchange = () => {
			resolve([...(input.files ?? [])]);
			input.remove();
		};
		input.oncancel = () => input.remove();
		document.body.append(input); // a browser may drop one that is nowhere
		input.click();
	});
}

/**
 * Brings the children of `parent` in step with `items`. Elements of items that stay are kept, so
 * that focus and loaded pictures stay with them.
 * @template T
 * @template {HTMLElement} E
 * @param {Element} parent
 * @param {readonly T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => E} create
 * @param {(element: E, item: T) => void} [update]
 */
export function keep(parent, items, keyOf, create, update = () => {}) {
	const wanted = new Set(items.map(keyOf));
	const there = new Map();
	for (const child of [...parent.children]) {
		const key = child.getAttribute("data-key") ?? "";
		if (wanted.has(key)) there.set(key, child);
		else child.remove();
	}
	let place = parent.firstElementChild;
	for (const item of items) {
		const key = keyOf(item);
		/** @type {E} */
		const element = there.get(key) ?? create(item);
		element.dataset.key = key;
		update(element, item);
		if (element === place) place = place.nextElementSibling;
		else parent.insertBefore(element, place);
	}
}
