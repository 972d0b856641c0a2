/** Fields of nodes: each shows a value of its node, edits it, and has the service's words about it below. */

import {make, newId} from "../dom.js";
import {NODE_TYPES} from "../graph/table.js";

/** Pointer travel for one step of a number, px. */
const STEP_PX = 6;

/** @type {Fn.field} */
export function field(context, {name, label, control, errors = [name], wide = false, scrub}) {
	const id = newId();
	const inputs = "input:not([type=radio]), textarea, select";
	const input = control.matches(inputs) ? control : control.querySelector(inputs);
	const words = make("label", label);
	const error = make("p.error", {id: `${id}-error`, hidden: true});
	if (input) {
		input.id = words.htmlFor = id;
		input.setAttribute("aria-describedby", error.id);
	}
	if (scrub) makeScrubbable(words, scrub, context);
	const box = make(wide ? "div.field.wide" : "div.field", {"data-field": name}, words, control, error);
	context.watch(({faults}) => errors.map(field => faults[context.id]?.[field] ?? ""), (...messages) => {
		const text = messages.find(Boolean) ?? "";
		const focused = document.activeElement;
		error.textContent = text;
		error.hidden = !text;
		input?.setAttribute("aria-invalid", String(Boolean(text)));
		// The first of several faults keeps the focus.
		const isElsewhere = focused?.getAttribute("aria-invalid") === "true" && !box.contains(focused);
		if (text && input instanceof HTMLElement && focused !== input && !isElsewhere) input.focus({preventScroll: context.place === "canvas"});
	});
	return box;
}

/** @type {Fn.textField} */
export function textField(context, {name, label, rows = 3, placeholder = "", errors}) {
	const area = make("textarea", {rows, placeholder, spellcheck: "false"});
	area.oninput = () => context.set({[name]: area.value});
	area.onblur = () => context.app.editor.endSeries();
	watchValue(context, name, value => write(area, String(value ?? "")));
	return {box: field(context, {name, label, control: area, errors, wide: true}), area};
}

/** @type {Fn.numberField} */
export function numberField(context, {name, label, fallback = () => null}) {
	const {least, most, step, whole, initial} = specOf(context, name, "number");
	const input = make("input", {type: "number", min: least, max: most, step: whole ? 1 : "any", inputmode: whole ? "numeric" : "decimal"});
	const set = (/** @type {number | null} */ value) => context.set({[name]: value});
	onNumber(input, set);
	input.onchange = () => {
		if (!input.value && !input.validity.badInput) set(initial); // emptied: as it was at first
		context.app.editor.endSeries();
	};
	const scrub = (/** @type {number} */ steps) => {
		const now = Number(context.node().values[name] ?? fallback(context.app.store.state) ?? least);
		const raw = Math.round((now + steps * step) / step) * step;
		set(Math.min(most, Math.max(least, Number(raw.toFixed(4)))));
	};
	watchValue(context, name, value => write(input, String(value ?? "")));
	context.watch(state => [fallback(state)], value => void (input.placeholder = String(value ?? "")));
	return field(context, {name, label, control: input, scrub});
}

/** @type {Fn.rangeField} */
export function rangeField(context, {name, label}) {
	const {least: min, most: max, step} = specOf(context, name, "number");
	const slider = make("input", {type: "range", min, max, step});
	const exact = make("input.exact", {type: "number", min, max, step: "any", "aria-label": `${label}, exactly`});
	const set = (/** @type {number} */ value) => context.set({[name]: value});
	slider.oninput = () => set(Number(slider.value));
	slider.onchange = () => context.app.editor.endSeries();
	onNumber(exact, set);
	watchValue(context, name, value => {
		slider.value = String(value);
		write(exact, String(value));
	});
	return field(context, {name, label, control: make("div.range", slider, exact), wide: true});
}

/** One of a few, all in sight. @type {Fn.segments} */
export function segments(context, {name, label, choices, onChoose = (/** @type {string} */ value) => context.set({[name]: value})}) {
	const group = newId();
	const row = make("div.segments", {role: "radiogroup", "aria-label": label});
	for (const {value, words} of choices) {
		const radio = make("input", {type: "radio", name: group, value});
		radio.onchange = () => onChoose(value);
		row.append(make("label", radio, make("span", words)));
	}
	watchValue(context, name, value => {
		for (const radio of row.querySelectorAll("input")) radio.checked = radio.value === value;
	});
	return row;
}

/** @type {Fn.onNumber} */
export function onNumber(input, act) {
	input.oninput = () => {
		if (input.value && !input.validity.badInput) act(Number(input.value));
	};
}

/** @type {Fn.watchValue} */
export function watchValue(context, name, react) {
	context.watch(({document}) => [document.graph.nodes[context.id]?.values[name] ?? null], value => react(value));
}

/** Writing the same value again would move the caret, and half of a number is no value yet. @type {Fn.fieldsWrite} */
export function write(control, text) {
	const isBusy = document.activeElement === control;
	const isSameNumber = control instanceof HTMLInputElement && isBusy && control.value !== "" && Number(control.value) === Number(text);
	if (control.value !== text && !isSameNumber && !(isBusy && control.validity.badInput)) control.value = text;
}

/** @type {Fn.specOf} */
function specOf(context, name, kind) {
	const spec = NODE_TYPES[context.node().kind].values[name];
	if (spec?.kind !== kind) throw new Error(`a ${context.node().kind} node has no ${kind} ${name}`);
	return /** @type {any} */ (spec);
}

/** @type {Fn.makeScrubbable} */
function makeScrubbable(handle, scrub, context) {
	let from = 0;
	handle.classList.add("scrub");
	handle.onpointerdown = event => {
		if (event.button === 0 && event.pointerType !== "touch") {
			from = event.clientX;
			handle.setPointerCapture(event.pointerId);
			event.stopPropagation(); // the node stays where it is
		}
	};
	handle.onpointermove = event => {
		const steps = handle.hasPointerCapture(event.pointerId) ? Math.trunc((event.clientX - from) / STEP_PX) : 0;
		from += steps * STEP_PX;
		if (steps) scrub(event.shiftKey ? steps * 10 : steps);
	};
	handle.onpointerup = () => context.app.editor.endSeries();
}
