/** The Sampler node: size, steps, seed. */

import {button, keep, make} from "../dom.js";
import {modelOfSampler} from "../models.js";
import {newSeed} from "../random.js";
import {presets} from "../sizes.js";
import {field, numberField, onNumber, segments, watchValue, write} from "./fields.js";

/** @type {MountNode} */
export function mountSampler(body, context) {
	const {store} = context.app;
	/** @type {Fn.numberOf} */
	const number = (name, label) => numberField(context, {name, label, fallback: state => modelOfSampler(state, context.id)?.defaults[name] ?? null});
	const [guidance, steps, seedBox] = [number("guidance_scale", "Guidance"), number("num_inference_steps", "Steps"), seed()];
	context.watch(state => [modelOfSampler(state, context.id)], model => {
		guidance.hidden = !model?.uses_guidance_scale;
		steps.hidden = model?.uses_steps === false;
		seedBox.hidden = model?.uses_seed === false;
	});
	const swap = () => {
		const {width, height} = sidesNow(store.state);
		context.set({width: height, height: width});
	};
	body.append(
		shapes(),
		make("div.sides", number("width", "Width"), button({label: "Swap width and height", icon: "swap", kind: "bare", act: swap}), number("height", "Height")),
		make("div.fields", steps, numberField(context, {name: "num_images", label: "Pictures"}), guidance, format()),
		seedBox
	);

	/** @param {State} state */
	function sidesNow(state) {
		const {width, height} = context.node().values;
		const defaults = modelOfSampler(state, context.id)?.defaults;
		return {width: width ?? defaults?.width ?? null, height: height ?? defaults?.height ?? null};
	}

	function shapes() {
		const row = make("div.shapes", {role: "group", "aria-label": "Shape"});
		context.watch(state => [modelOfSampler(state, context.id), context.node().values], (model, _values) => {
			const now = sidesNow(store.state);
			const isNow = (/** @type {Size} */ {width, height}) => String(now.width === width && now.height === height);
			const sizes = model ? presets(model) : [];
			keep(
				row,
				sizes,
				({name, width, height}) => `${name} ${width} ${height}`,
				shape,
				(element, size) => element.setAttribute("aria-pressed", isNow(size))
			);
		});
		return row;
	}

	/** @param {Size} size */
	function shape({name, width, height}) {
		const words = `${name}, ${width} × ${height}`;
		const drawing = make("span.shape");
		const unit = (name === "Large" ? 22 : 18) / Math.max(width, height);
		drawing.style.width = `${width * unit}px`;
		drawing.style.height = `${height * unit}px`;
		return make("button.shape-button", {title: words, "aria-label": words, onclick: () => context.set({width, height})}, drawing);
	}

	function format() {
		const select = make("select", ...["png", "jpeg", "webp"].map(name => make("option", {value: name}, name.toUpperCase())));
		select.onchange = () => context.set({output_format: select.value});
		watchValue(context, "output_format", value => void (select.value = String(value)));
		return field(context, {name: "output_format", label: "File", control: select});
	}

	function seed() {
		const input = make("input", {type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, "aria-label": "Seed"});
		const fix = (/** @type {number} */ value) => context.set({seed: value, seed_mode: "fixed"});
		const drawn = () => {
			const last = store.state.shown[context.id];
			return last?.job.result?.images[last.index]?.seed;
		};
		onNumber(input, fix);
		const mode = segments(context, {
			name: "seed_mode",
			label: "Seed",
			choices: [
				{value: "random", words: "Random"},
				{value: "fixed", words: "Fixed"}
			],
			onChoose: value => (value === "fixed" ? fix(Number(context.node().values.seed ?? drawn() ?? newSeed())) : context.set({seed_mode: value}))
		});
		context.watch(({shown}) => [context.node().values, shown[context.id]], (values, _shown) => {
			write(input, values.seed_mode === "fixed" ? String(values.seed ?? "") : "");
			input.placeholder = drawn() === undefined ? "any" : `last: ${drawn()}`;
		});
		const dice = button({label: "Another seed", icon: "seed", kind: "bare", act: () => fix(newSeed())});
		return field(context, {name: "seed", label: "Seed", control: make("div.seed", mode, input, dice), wide: true});
	}
}
