/** The page's mutable state, all of it. Values are replaced, never changed in place. */

import {EMPTY_GRAPH} from "./graph/graph.js";
import {newDocument} from "./graph/history.js";

/** @type {Fn.initialService} */
export function initialService(name, address) {
	return {
		name,
		address,
		phase: "connecting",
		reason: "",
		wasUp: false,
		key: "",
		info: null,
		models: [],
		backends: [],
		queue: null,
		gpus: [],
		loras: [],
		lorasError: ""
	};
}

/** @returns {State} */
export function initialState() {
	return {
		services: {},
		keyAsked: null,
		keyError: "",
		document: newDocument(EMPTY_GRAPH),
		workflow: "",
		selection: [],
		selectedWire: null,
		view: "canvas",
		panel: null,
		faults: {},
		runs: [],
		shown: {},
		toShow: {},
		uploads: {},
		gallery: {images: [], words: "", isComplete: false, isLoading: false, error: "", isKnown: false},
		viewed: null,
		compared: null,
		message: null,
		announcement: ""
	};
}

/** @type {Readonly<Camera>} */
export const INITIAL_CAMERA = Object.freeze({x: 0, y: 0, scale: 1});

/** @template {object} S */
export class Values {
	#state;
	/** @type {Set<() => void>} */
	#watchers = new Set();

	/** @param {S} state */
	constructor(state) {
		this.#state = state;
	}

	get state() {
		return this.#state;
	}

	/** @param {Partial<S>} patch */
	set(patch) {
		this.#state = {...this.#state, ...patch};
		for (const notice of [...this.#watchers]) notice();
	}

	/**
	 * Calls `react` now, and whenever one of the selected values is another one than before.
	 * @template {unknown[]} T
	 * @param {(state: S) => [...T]} select
	 * @param {(...values: NoInfer<T>) => void} react
	 * @returns {() => void} ends it
	 */
	watch(select, react) {
		let seen = select(this.#state);
		const notice = () => {
			if (!this.#watchers.has(notice)) return; // ended by a watcher before this one
			const now = select(this.#state);
			if (now.some((value, index) => !Object.is(value, seen[index]))) {
				seen = now;
				react(...now);
			}
		};
		this.#watchers.add(notice);
		react(...seen);
		return () => this.#watchers.delete(notice);
	}
}

/** @extends {Values<State>} */
export class Store extends Values {
	/** @type {Fn.setService} */
	setService(name, patch) {
		const service = this.state.services[name];
		const names = /** @type {(keyof ServiceState)[]} */ (Object.keys(patch));
		if (service && names.some(key => !Object.is(patch[key], service[key]))) {
			this.set({services: {...this.state.services, [name]: {...service, ...patch}}});
		}
	}

	/** To eyes and screen readers, for a moment. @param {string} text */
	say(text) {
		this.set({message: {text}});
	}
}
