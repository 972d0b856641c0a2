/** One service: whether it answers, and what happens there. Asks again and again, and notices when another call gets no answer. */

import {Problem, Unreachable} from "./api.js";
import {messageOf} from "./format.js";
import {Pause} from "./pause.js";

const READY_MS = 4000;
const HIDDEN_MS = 15_000;
const TROUBLE_MS = 1000;
/** A service that was never there may not be meant to be. */
const ABSENT_MS = 4000;

/** Whether calls make sense now. @param {ServiceState | null | undefined} service */
export function isReachable(service) {
	return service?.phase === "ready" || service?.phase === "waiting";
}

export class Connection {
	#client;
	#store;
	#pause = new Pause();
	#isListening = false;
	/** @type {Set<(event: StreamEvent) => void>} */
	#listeners = new Set();

	/** @param {ServiceName} name @param {ServiceClient} client @param {Store} store */
	constructor(name, client, store) {
		this.name = name;
		this.#client = client;
		this.#store = store;
	}

	get state() {
		const state = this.#store.state.services[this.name];
		if (!state) throw new Error(`there is no service ${this.name}`);
		return state;
	}

	/** Whether files must be fetched with the key, and cannot be named in `src` or `href`. */
	get sendsKey() {
		return this.#client.sendsKey();
	}

	/** @param {string} path */
	url(path) {
		return this.#client.address + path;
	}

	/** @param {(event: StreamEvent) => void} listener */
	listen(listener) {
		this.#listeners.add(listener);
	}

	async run() {
		document.addEventListener("visibilitychange", () => this.#pause.wake());
		for (;;) {
			await this.#check();
			if (isReachable(this.state) && !this.#isListening) void this.#follow();
			await this.#pause.wait(this.#untilNextCheck());
		}
	}

	/** The answer of a call. One that got none, or that wants a key, tells the whole page. @template T @param {Call<T>} call */
	async ask(call) {
		try {
			return await call(this.#client);
		} catch (error) {
			const wasReachable = isReachable(this.state);
			this.#judge(error);
			if (wasReachable && !isReachable(this.state)) this.#pause.wake();
			throw error;
		}
	}

	/** @param {string} key */
	useKey(key) {
		this.#store.set({keyError: "", keyAsked: null});
		this.#set({key, phase: "connecting"});
		this.#pause.wake();
	}

	/** Reads the stream of events until it ends; then the service is looked at. */
	async #follow() {
		this.#isListening = true;
		const stop = new AbortController();
		try {
			await this.#client.events(event => {
				if (event.name === "queue") this.#set({queue: event.data});
				else if (event.name === "gpu") this.#set({gpus: event.data.gpus});
				this.#listeners.forEach(listener => listener(event));
			}, stop.signal);
		} catch {
			// Whether it still answers is what the check finds out.
		} finally {
			stop.abort();
			this.#isListening = false;
			this.#pause.wake();
		}
	}

	async #check() {
		const {phase} = this.state;
		if (phase === "locked") return;
		try {
			const health = await this.#client.ready();
			if (phase !== "ready" && !(phase === "waiting" && health.reason)) {
				// After an absence it may be another version, with other models.
				const [info, {models}, {backends}] = await Promise.all([this.#client.info(), this.#client.models(), this.#client.backends()]);
				this.#set({info, models, backends, wasUp: true});
			}
			this.#set({phase: health.reason ? "waiting" : "ready", reason: health.reason ?? ""});
		} catch (error) {
			this.#judge(error);
			if (!(error instanceof Unreachable) && this.state.phase !== "locked") this.#set({phase: "down", reason: messageOf(error)});
		}
	}

	/** @param {unknown} error */
	#judge(error) {
		if (error instanceof Unreachable) this.#set({phase: "down", reason: ""});
		else if (error instanceof Problem && error.status === 401 && this.state.phase !== "locked") {
			this.#store.set({keyAsked: this.name, keyError: this.state.key ? error.message : ""});
			this.#set({phase: "locked", key: ""});
		}
	}

	#untilNextCheck() {
		const {phase, wasUp} = this.state;
		if (phase === "locked") return undefined;
		if (phase !== "ready") return wasUp || phase !== "down" ? TROUBLE_MS : ABSENT_MS;
		return document.hidden ? HIDDEN_MS : READY_MS;
	}

	/** @param {Partial<ServiceState>} patch */
	#set(patch) {
		this.#store.setService(this.name, patch);
	}
}
