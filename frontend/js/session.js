/** What a reload must not lose, in the tab's sessionStorage: it ends with the tab. */

import {SERVICE_NAMES} from "./config.js";
import {newDocument} from "./graph/history.js";
import {asObject} from "./graph/restore.js";
import {parse, serialise} from "./graph/workflow.js";
import {FRESH, isOpen} from "./runs.js";

const PAGE = "flux page";
const KEYS = "flux keys";

/** @type {Fn.readKeys} */
export function readKeys() {
	return Object.fromEntries(Object.entries(read(KEYS)).flatMap(([address, key]) => (typeof key === "string" ? [[address, key]] : [])));
}

/** @type {Fn.rememberKey} */
export function rememberKey(address, key) {
	write(KEYS, {...readKeys(), [address]: key});
}

/** @type {Fn.restore} */
export function restore() {
	const saved = read(PAGE);
	try {
		const {graph, name} = parse(saved.workflow);
		return {
			document: newDocument(graph),
			workflow: name,
			...((saved.view === "canvas" || saved.view === "form") && {view: saved.view}),
			runs: Array.isArray(saved.runs) ? saved.runs.flatMap(runFrom) : [],
			toShow: Object.fromEntries(Object.entries(asObject(saved.shown)).flatMap(shownFrom))
		};
	} catch {
		return null; // nothing was saved, or another version of the page saved it
	}
}

/** @param {Store} store */
export function keepSession(store) {
	store.watch(
		({document, workflow, view, runs, shown, toShow}) => [document.graph, workflow, view, runs, shown, toShow],
		(graph, name, view, runs, shown, toShow) => {
			const finished = Object.entries(shown).flatMap(([sampler, {service, job}]) => (graph.nodes[sampler] ? [[sampler, {service, id: job.id}]] : []));
			const open = runs.filter(({phase}) => isOpen(phase)).map(({key, id, service, sampler, body, parts}) => ({key, id, service, sampler, body, parts}));
			write(PAGE, {workflow: serialise(graph, name), view, runs: open, shown: {...toShow, ...Object.fromEntries(finished)}});
		}
	);
	store.watch(
		({services}) => [services],
		services => write(KEYS, Object.fromEntries(Object.values(services).flatMap(({address, key}) => (key ? [[address, key]] : []))))
	);
}

/** @type {Fn.runFrom} */
function runFrom(saved) {
	const {key, id, service, sampler, body, parts} = asObject(saved);
	const {prompt} = asObject(body);
	if (typeof key !== "string" || typeof prompt !== "string" || typeof sampler !== "string" || !isService(service)) return [];
	const known = typeof id === "string" ? id : null;
	return [
		{
			...FRESH,
			key,
			service,
			sampler,
			id: known,
			phase: known ? "queued" : "unsent",
			body: {...asObject(body), prompt},
			parts: Array.isArray(parts) ? parts : []
		}
	];
}

/** @type {Fn.shownFrom} */
function shownFrom([sampler, saved]) {
	const {service, id} = asObject(saved);
	return typeof id === "string" && isService(service) ? [[sampler, {service, id}]] : [];
}

/** @type {Fn.isService} */
function isService(name) {
	return SERVICE_NAMES.some(known => known === name);
}

/** @param {string} name */
function read(name) {
	try {
		return asObject(JSON.parse(sessionStorage.getItem(name) ?? "{}"));
	} catch {
		return {}; // storage is off, or holds what another program wrote
	}
}

/** @type {Fn.sessionWrite} */
function write(name, values) {
	try {
		sessionStorage.setItem(name, JSON.stringify(values));
	} catch {
		// Storage is off or full: a reload starts afresh.
	}
}
