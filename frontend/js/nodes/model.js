/** The Model node: which service, which of its models. */

import {keep, make} from "../dom.js";
import {inShort, precision} from "../format.js";
import {modelOf, priceOf} from "../models.js";
import {servicesOf, serviceNamed} from "../services.js";
import {field, segments} from "./fields.js";

/** @type {MountNode} */
export function mountModel(body, context) {
	const {store} = context.app;
	const all = servicesOf(store.state).map(({name}) => name);
	const services = segments(context, {
		name: "service",
		label: "Service",
		choices: all.map(name => ({value: name, words: precision(name)})),
		onChoose: service => context.set({service, backend: null, model: null})
	});
	const backend = make("select");
	const model = make("select");
	backend.onchange = () => context.set({backend: backend.value || null, model: null});
	model.onchange = () => context.set({model: model.value || null});
	const why = make("p.hint");
	const about = make("p.hint.about");
	const price = make("p.hint.warning");
	const absent = make("ul.hint");
	const absentCount = make("summary");
	const absentBox = make("details.absent", absentCount, absent);
	const backendBox = field(context, {name: "backend", label: "Backend", control: backend, wide: true});

	context.watch(state => [serviceOf(state)?.models ?? NONE, context.node().values], (models, {backend: wantedBackend, model: wanted}) => {
		const backends = [...new Set(models.filter(({available}) => available).map(each => each.backend))];
		if (wantedBackend && !backends.includes(String(wantedBackend))) backends.push(String(wantedBackend));
		backendBox.hidden = backends.length < 2;
		keep(backend, ["", ...backends], String, value => make("option", {value}, value || "any"));
		backend.value = String(wantedBackend ?? "");
		const offered = models.filter(each => (!wantedBackend || each.backend === wantedBackend) && (each.available || each.id === wanted));
		const standard = models.find(({is_default}) => is_default);
		const open = wantedBackend ? "the backend’s default" : standard ? `${standard.title} (default)` : "the service’s default";
		/** @type {Pick<Model, "id" | "title" | "available" | "price">[]} */
		const options = [{id: "", title: open, available: true}, ...offered];
		if (wanted && !offered.some(({id}) => id === wanted)) options.push({id: String(wanted), title: `${wanted} (not here)`, available: true});
		keep(model, options, ({id}) => id, ({id}) => make("option", {value: id}), (option, {title, available, price}) => {
			option.textContent = available ? `${title}${price ? ` · ${priceOf({price})}` : ""}` : `${title} (cannot run here)`;
		});
		model.value = String(wanted ?? "");
		const others = models.filter(({available}) => !available);
		absentBox.hidden = !others.length;
		absentCount.textContent = `${others.length} more cannot run here`;
		keep(
			absent,
			byReason(others),
			([reason, titles]) => `${reason} ${titles}`,
			([reason, titles]) => make("li", make("strong", titles), `: ${reason}`)
		);
	});
	context.watch(state => [modelOf(state, context.node()), serviceOf(state)?.phase, serviceOf(state)?.reason], (chosen, phase, _reason) => {
		why.textContent = wordsOf(serviceOf(store.state), chosen);
		about.textContent = phase === "ready" ? (chosen?.description ?? "") : "";
		about.title = about.textContent;
		price.textContent = chosen?.price ? `Each picture costs ${chosen.price}.` : "";
	});
	for (const name of all) {
		context.watch(
			state => [state.services[name]?.phase],
			phase => services.querySelector(`[value=${name}] + span`)?.setAttribute("data-phase", phase ?? "")
		);
	}
	body.append(
		field(context, {name: "service", label: "Service", control: services, wide: true}),
		backendBox,
		field(context, {name: "model", label: "Model", control: model, wide: true, errors: ["model", "loras"]}),
		price,
		why,
		about,
		absentBox
	);

	/** @param {State} state */
	function serviceOf(state) {
		return serviceNamed(state, context.node().values.service);
	}
}

/** The same each time, so that nothing seems to change. @type {readonly Model[]} */
const NONE = [];

/** @type {Fn.byReason} */
function byReason(models) {
	/** @type {Map<string, string[]>} */
	const titles = new Map();
	for (const {id, title, reason} of models) {
		// A reason begins with the id where it is about the model and not about the machine.
		const words = inShort(reason ?? "").replace(`${id} `, "");
		titles.set(words, [...(titles.get(words) ?? []), title]);
	}
	return [...titles].map(([reason, all]) => [reason, all.join(", ")]);
}

/** @type {Fn.wordsOf} */
function wordsOf(service, model) {
	if (!service) return "This page knows no such service.";
	const fetched = model?.available && model.downloaded === false && !model.price ? "It is fetched when it is first used" : "";
	const reason =
		model?.available === false
			? `It cannot run here: ${inShort(model.reason ?? "")}`
			: model?.is_default
				? inShort(service.info?.default_model_reason ?? "")
				: fetched;
	return {
		connecting: "Connecting …",
		down: "It does not answer. Runs wait until it does.",
		locked: "It needs a key.",
		waiting: `It cannot draw now: ${service.reason}`,
		ready: reason && `${reason[0]?.toUpperCase()}${reason.slice(1)}.`.replace(/\.\.$/, ".")
	}[service.phase];
}
