/** The library: LoRAs of both services, to search, use, rename, delete. */

import {isReachable} from "../connection.js";
import {button, chooseFiles, find, keep, make} from "../dom.js";
import {precision} from "../format.js";
import {factsOf} from "../nodes/lora.js";
import {servicesOf} from "../services.js";
import {confirmed} from "./confirm.js";

/** @type {Fn.mountLoras} */
export function mountLoras({store, library}, panel) {
	const search = make("input", {type: "search", placeholder: "Search LoRAs", "aria-label": "Search LoRAs"});
	const choose = async () => {
		const files = await chooseFiles(".safetensors", true);
		if (files.length) await library.add(files);
	};
	const list = make("ul.library");
	const note = make("p.hint.empty");
	panel.append(make("div.row.apart", search, button({words: "Add files", icon: "upload", act: choose})), note, list);
	/** The one whose name is being changed. */
	let edited = "";

	const render = () => {
		const words = search.value.trim().toLowerCase();
		const all = entriesOf(store.state);
		const found = all.filter(({lora}) => [lora.name, lora.format, lora.base_model, ...(lora.trigger_words ?? [])].join(" ").toLowerCase().includes(words));
		keep(list, found, ({lora}) => lora.name, card, updateCard);
		const errors = servicesOf(store.state).flatMap(({name, lorasError}) => (lorasError ? [`${precision(name)}: ${lorasError}`] : []));
		const none = all.length
			? "Nothing has these words."
			: errors.join(" ") || "Drop .safetensors files anywhere on this page. They are kept here, and each gets a node.";
		note.textContent = found.length ? "" : none;
		note.hidden = found.length > 0;
	};
	search.oninput = render;
	store.watch(({services}) => [services], render);
	// A file may have come from elsewhere since.
	store.watch(
		state => [state.panel],
		now => now === "loras" && servicesOf(store.state).forEach(service => void (isReachable(service) && library.refresh(service.name)))
	);

	/** @type {Fn.onEach} */
	async function onEach(name, act) {
		const entry = entriesOf(store.state).find(({lora}) => lora.name === name);
		for (const service of entry?.services ?? []) {
			const lora = store.state.services[service]?.loras.find(each => each.name === name);
			const trouble = lora && (await act(service, lora));
			if (trouble) return String(trouble);
			await Promise.all((entry?.services ?? []).map(each => library.refresh(each)));
		}
		return "";
	}

	/** @param {LoraEntry} entry */
	function card({lora: {name}}) {
		const form = make("form.edit", {hidden: true});
		const remove = async () => {
			if (await confirmed(`Delete the LoRA ${name}? Its file goes with it, for good.`)) await onEach(name, (service, lora) => library.delete(service, lora));
		};
		return make(
			"li.lora",
			make("p.lora-name", name),
			make("p.hint.lora-facts"),
			make("p.hint.lora-words"),
			make("p.hint.lora-fits"),
			make(
				"div.row.lora-actions",
				button({label: `Use ${name}`, words: "Use", icon: "plus", act: () => library.use(name)}),
				button({label: `Edit ${name}`, words: "Edit", kind: "quiet lora-edit", act: edit}),
				button({label: `Delete ${name}`, icon: "delete", kind: "bare lora-delete", act: () => void remove()})
			),
			form
		);

		function edit() {
			const entry = entriesOf(store.state).find(({lora}) => lora.name === name);
			edited = edited === name ? "" : name;
			form.hidden = edited !== name;
			if (!entry || form.hidden) return;
			const rename = make("input", {type: "text", value: name, maxlength: 100, "aria-label": "Name"});
			const words = make("input", {type: "text", value: (entry.lora.trigger_words ?? []).join(", "), "aria-label": "Trigger words, separated by commas"});
			const error = make("p.error", {role: "alert"});
			form.replaceChildren(make("label", "Name", rename), make("label", "Trigger words", words), error, make("button.quiet", {type: "submit"}, "Save"));
			form.onsubmit = async event => {
				event.preventDefault();
				const trigger_words = words.value
					.split(",")
					.map(word => word.trim())
					.filter(Boolean);
				const changes = {...(rename.value.trim() !== name && {name: rename.value.trim()}), trigger_words};
				error.textContent = await onEach(name, (service, lora) => library.change(service, lora, changes));
				if (error.textContent) return;
				edited = "";
				form.hidden = true;
			};
			rename.focus();
		}
	}
}

/** @type {Fn.updateCard} */
function updateCard(element, {lora, services}) {
	const {trigger_words: words = [], compatible_models: fits, refusal, builtin} = lora;
	find(".lora-facts", element).textContent = `${factsOf(lora)} · ${services.map(precision).join(", ")}`;
	find(".lora-words", element).textContent = words.length ? `Trigger words: ${words.join(", ")}` : "";
	find(".lora-fits", element).textContent = refusal
		? `Cannot be applied: ${refusal}`
		: fits?.length
			? `Fits ${fits.join(", ")}`
			: fits
				? "Fits no model here"
				: "On its way";
	find(".lora-edit", element).hidden = find(".lora-delete", element).hidden = Boolean(builtin) || !fits;
}

/** @type {Fn.entriesOf} */
function entriesOf(state) {
	/** @type {Map<string, LoraEntry>} */
	const entries = new Map();
	for (const {name: service, loras} of servicesOf(state)) {
		for (const lora of loras) {
			const {services = []} = entries.get(lora.name) ?? {};
			entries.set(lora.name, {lora, services: [...services, service]});
		}
	}
	return [...entries.values()].sort((a, b) => a.lora.name.localeCompare(b.lora.name));
}
