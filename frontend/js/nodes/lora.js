/** The LoRA node: a file of the library, or one on its way there. */

import {button, chooseFiles, find, keep, make} from "../dom.js";
import {fileSize, precision} from "../format.js";
import {wiresOutOf} from "../graph/graph.js";
import {modelOf} from "../models.js";
import {serviceNamed} from "../services.js";
import {field, rangeField, watchValue, write} from "./fields.js";

/** @type {MountNode} */
export function mountLora(body, context) {
	const {library, store, editor} = context.app;
	const select = make("select");
	select.onchange = () => context.set({name: select.value || null, trigger_word: null});
	const word = make("input", {type: "text", maxlength: 50, spellcheck: "false"});
	word.oninput = () => context.set({trigger_word: word.value || null});
	word.onblur = () => editor.endSeries();
	const facts = make("p.hint");
	const misfit = make("p.error");
	const bar = make("progress", {max: 1, value: 0, "aria-label": "Upload"});
	const upload = make("div.upload", make("p.upload-name"), bar, make("p.error"));
	const fill = async () => {
		const [file] = await chooseFiles(".safetensors");
		if (file) await library.fill(context.id, file);
	};
	const choose = button({words: "Choose a file", icon: "upload", act: fill});
	const again = button({words: "Try again", act: () => void library.again(context.id)});
	const nameBox = field(context, {name: "name", label: "File", control: select, errors: ["loras", "lora_name"], wide: true});

	context.watch(state => [lorasFor(state), context.node().values.name], (loras, name) => {
		keep(select, [{name: ""}, ...loras], lora => lora.name, lora => make("option", {value: lora.name}, lora.name || "Choose one …"));
		const lora = loras.find(each => each.name === name);
		if (typeof name === "string" && !lora) select.append(make("option", {value: name, "data-key": name}, `${name} (not here)`));
		select.value = String(name ?? "");
		word.placeholder = lora?.trigger_words?.join(", ") || "none";
		facts.textContent = lora ? factsOf(lora) : "";
	});
	context.watch(state => [whyNot(state)], why => {
		misfit.textContent = why;
		misfit.hidden = !why;
	});
	const isSending = () => store.state.uploads[context.id]?.phase === "sending";
	context.watch(({uploads}) => [uploads[context.id]], now => {
		upload.hidden = !now;
		nameBox.hidden = Boolean(now);
		choose.hidden = isSending() || context.node().values.name !== null;
		again.hidden = now?.phase !== "failed";
		if (!now) return;
		const progress = isSending() ? `${Math.round(100 * now.fraction)} %${now.to ? ` to ${precision(now.to)}` : ""}` : "";
		find(".upload-name", upload).textContent = [now.filename, fileSize(now.size), progress].filter(Boolean).join(" · ");
		bar.hidden = !isSending();
		bar.value = now.fraction;
		find(".error", upload).textContent = now.error;
	});
	watchValue(context, "name", name => void (choose.hidden = name !== null || isSending()));
	watchValue(context, "trigger_word", value => write(word, String(value ?? "")));
	body.append(
		upload,
		nameBox,
		make("div.row", choose, again),
		rangeField(context, {name: "weight", label: "Weight"}),
		field(context, {name: "trigger_word", label: "Trigger word", control: word, wide: true}),
		facts,
		misfit
	);

	/** The Model nodes that it is wired to. @param {State} state */
	function modelsAfter({document: {graph}}) {
		return wiresOutOf(graph, context.id).flatMap(({to}) => graph.nodes[to.node] ?? []);
	}

	/** Why the file cannot act on a model that it is wired to, or "". @param {State} state */
	function whyNot(state) {
		for (const node of modelsAfter(state)) {
			const lora = serviceNamed(state, node.values.service)?.loras.find(({name}) => name === context.node().values.name);
			const model = modelOf(state, node);
			const fits = lora?.compatible_models;
			if (lora?.refusal) return `It cannot be applied: ${lora.refusal}.`;
			if (fits && model && !fits.includes(model.id)) {
				return `It does not fit ${model.title}: it is made for ${lora.base_model ?? "another model"}${fits.length ? ` (${fits.join(", ")})` : ""}.`;
			}
		}
		return "";
	}

	/** @type {Fn.lorasFor} */
	function lorasFor(state) {
		const services = [...modelsAfter(state).map(({values}) => serviceNamed(state, values.service)), ...Object.values(state.services)];
		return services.find(service => service?.loras.length)?.loras ?? NONE;
	}
}

/** The same each time, so that nothing seems to change. @type {readonly Lora[]} */
const NONE = [];

/** @param {Lora} lora */
export function factsOf({rank, format, base_model, size_bytes}) {
	return [rank ? `rank ${rank}` : "", format, base_model, size_bytes === undefined ? "" : fileSize(size_bytes)].filter(Boolean).join(" · ");
}
