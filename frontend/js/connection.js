/** One service: whether it answers, and what happens there. Asks again and again. */

import {Problem, Unreachable} from "./api.js";
import {messageOf} from "./format.js";
import {Pause} from "./pause.js";

const READY_MS = 4000;
const HIDDEN_MS = 15_000;
const TROUBLE_MS = 1000;
/** A service that was never there may not be meant to be. */
const ABSENT_MS = 4000;

/** Whether calls make sense now. @type {Fn.isReachable} */
export function isReachable(service) {
	return service?.phase === "ready" || service?.phase === "waiting";
}

/** @type {Fn.newConnection} */
export function newConnection(name, client, store) {
	const pause = new Pause();
	let isListening = false;
	/** @type {Set<(event: StreamEvent) => void>} */
	const listeners = new Set();
	/** @type {Connection} */
	const own = {
		name,

		get state() {
			const state = store.state.services[name];
			if (!state) throw new Error(`there is no service ${name}`);
			return state;
		},

		get sendsKey() {
			return client.sendsKey();
		},

		url(path) {
			return client.address + path;
		},

		listen(listener) {
			listeners.add(listener);
		},

		async run() {
			document.addEventListener("visibilitychange", () => pause.wake());
			for (;;) {
				await check();
				if (isReachable(own.state) && !isListening) void follow();
				await pause.wait(untilNextCheck());
			}
		},

		async ask(call) {
			const {key} = own.state;
			try {
				return await call(client);
			} catch (error) {
				const wasReachable = isReachable(own.state);
				if (key === own.state.key) judge(error); // not one that was replaced
				if (wasReachable && !isReachable(own.state)) pause.wake();
				throw error;
			}
		},

		useKey(key) {
			store.set({keyError: "", keyAsked: null});
			set({key, phase: "connecting"});
			pause.wake();
		}
	};
	return own;

	/** Reads the stream of events until it ends; then the service is looked at. */
	async function follow() {
		isListening = true;
		const stop = new AbortController();
		try {
			await client.events(event => {
				if (event.name === "queue") set({queue: event.data});
				else if (event.name === "gpu") set({gpus: event.data.gpus});
				listeners.forEach(listener => listener(event));
			}, stop.signal);
		} catch {
			// Whether it still answers is what the check finds out.
		} finally {
			stop.abort();
			isListening = false;
			pause.wake();
		}
	}

	async function check() {
		const {phase, key} = own.state;
		if (phase === "locked") return;
		// What was asked before a key was refused or replaced says nothing of now.
		const isOld = () => own.state.phase === "locked" || key !== own.state.key;
		try {
			const health = await client.ready();
			if (phase !== "ready" && !(phase === "waiting" && health.reason)) {
				// After an absence it may be another version, with other models.
				const [info, {models}, {backends}] = await Promise.all([client.info(), client.models(), client.backends()]);
				set({info, models, backends, wasUp: true});
			}
			if (!isOld()) set({phase: health.reason ? "waiting" : "ready", reason: health.reason ?? ""});
		} catch (error) {
			if (isOld()) return;
			judge(error);
			if (!(error instanceof Unreachable) && own.state.phase !== "locked") set({phase: "down", reason: messageOf(error)});
		}
	}

	/** @param {unknown} error */
	function judge(error) {
		if (error instanceof Unreachable) set({phase: "down", reason: ""});
		else if (error instanceof Problem && error.status === 401 && own.state.phase !== "locked") {
			store.set({keyAsked: name, keyError: own.state.key ? error.message : ""});
			set({phase: "locked", key: ""});
		}
	}

	function untilNextCheck() {
		const {phase, wasUp} = own.state;
		if (phase === "locked") return undefined;
		if (phase !== "ready") return wasUp || phase !== "down" ? TROUBLE_MS : ABSENT_MS;
		return document.hidden ? HIDDEN_MS : READY_MS;
	}

	/** @type {Fn.connectionSet} */
	function set(patch) {
		store.setService(name, patch);
	}
}
