/** The only module that talks to a service. */

import {readEvents} from "./event_stream.js";

const TIMEOUT_MS = 15_000;
const FILE_TIMEOUT_MS = 120_000;
/** Fetching and loading twelve billion weights takes its time. */
const LOAD_TIMEOUT_MS = 7_200_000;

/** The service did not answer. */
export class Unreachable extends Error {}

/** The service answered that something is wrong. */
export class Problem extends Error {
	/** @param {string} message @param {number} status @param {string} [code] @param {FieldError[]} [fields] */
	constructor(message, status, code = "", fields = []) {
		super(message);
		this.status = status;
		this.code = code;
		this.fields = fields;
	}
}

export class ServiceClient {
	#readKey;

	/** @param {string} address origin of the service @param {() => string} readKey the key to send; "" for none */
	constructor(address, readKey) {
		this.address = address;
		this.#readKey = readKey;
	}

	get sendsKey() {
		return this.#readKey() !== "";
	}

	/** @param {string} path */
	url(path) {
		return this.address + path;
	}

	/** What program this is; answered without a key. @returns {Promise<{service: string}>} */
	live() {
		return this.#json("/health/live");
	}

	/** Whether a job can be taken now. 503 is an answer here and no problem. @returns {Promise<Health>} */
	async ready() {
		const response = await this.#fetch("/health/ready");
		if (!response.ok && response.status !== 503) throw await problemOf(response);
		return readJson(response);
	}

	/** @returns {Promise<Info>} */
	info() {
		return this.#json("/info");
	}

	/** @returns {Promise<{models: Model[]}>} */
	models() {
		return this.#json("/api/models");
	}

	/** @returns {Promise<{backends: Backend[]}>} */
	backends() {
		return this.#json("/api/backends");
	}

	/** @param {GenerateBody} body @param {string} idempotencyKey @returns {Promise<Submitted>} */
	submit(body, idempotencyKey) {
		return this.#send("POST", "/jobs", body, {headers: {"Idempotency-Key": idempotencyKey}});
	}

	/** @param {string} id @returns {Promise<Job>} */
	job(id) {
		return this.#json(at("/jobs/", id));
	}

	/** @param {string} id @returns {Promise<{cancelled: boolean, status: string}>} */
	cancel(id) {
		return this.#send("POST", at("/jobs/", id, "/cancel"));
	}

	/** @param {"pause" | "resume" | "clear"} what @returns {Promise<QueueState>} */
	changeQueue(what) {
		return this.#send("POST", `/queue/${what}`);
	}

	/** Everything that happens, until the stream ends. @param {(event: StreamEvent) => void} onEvent @param {AbortSignal} signal */
	async events(onEvent, signal) {
		const response = await this.#fetch("/events", {signal});
		if (!response.ok || !response.body) throw await problemOf(response);
		await whileReading(readEvents(response.body, onEvent));
	}

	/** Pictures, newest first, older than `before`, whose prompt has the words. @param {{limit: number, before?: string, words?: string}} page @returns {Promise<{images: StoredImage[]}>} */
	images({limit, before = "", words = ""}) {
		const query = new URLSearchParams({limit: String(limit), ...(before && {before}), ...(words && {q: words})});
		return this.#json(`/images?${query}`);
	}

	/** @param {string} id */
	deleteImage(id) {
		return this.#ok(at("/images/", id), {method: "DELETE"});
	}

	/** Whether cleanup leaves a picture. @param {string} id @param {boolean} isPinned */
	pinImage(id, isPinned) {
		return this.#ok(at("/images/", id, "/pin"), {method: isPinned ? "PUT" : "DELETE"});
	}

	/** @returns {Promise<{loras: Lora[]}>} */
	loras() {
		return this.#json("/loras");
	}

	/** @param {string} name @param {LoraChanges} changes @returns {Promise<StoredLora>} */
	changeLora(name, changes) {
		return this.#send("PATCH", at("/loras/", name), changes);
	}

	/** @param {string} name */
	deleteLora(name) {
		return this.#ok(at("/loras/", name), {method: "DELETE"});
	}

	/** Sends a file as it is, telling how far it is. `fetch` cannot tell, so this is the older way. @param {File} file @param {(fraction: number) => void} onProgress @returns {Promise<StoredLora>} */
	uploadLora(file, onProgress) {
		return new Promise((resolve, reject) => {
			const request = new XMLHttpRequest();
			request.open("PUT", this.url(at("/loras/", file.name)));
			if (this.sendsKey) request.setRequestHeader("X-API-Key", this.#readKey());
			request.setRequestHeader("Content-Type", "application/octet-stream");
			request.upload.addEventListener("progress", ({loaded, total}) => onProgress(total ? loaded / total : 0));
			request.addEventListener("load", async () => {
				const response = new Response(request.responseText, {status: request.status});
				if (response.ok) readJson(response).then(resolve, reject);
				else reject(await problemOf(response));
			});
			request.addEventListener("error", () => reject(new Unreachable(`${this.address} does not answer`)));
			request.send(file);
		});
	}

	/** @param {string} model */
	loadModel(model) {
		return this.#send("POST", "/load-model", {model}, {signal: AbortSignal.timeout(LOAD_TIMEOUT_MS)});
	}

	unloadModel() {
		return this.#send("POST", "/unload-model", undefined, {signal: AbortSignal.timeout(LOAD_TIMEOUT_MS)});
	}

	/** Of a fleet's front door. @returns {Promise<Fleet>} */
	fleet() {
		return this.#json("/dashboard/api/fleet");
	}

	/** Of the last 24 hours. @returns {Promise<ImageStats>} */
	imageStats() {
		return this.#json("/dashboard/api/image-stats");
	}

	/** @returns {Promise<{image_generation: boolean}>} */
	fleetSettings() {
		return this.#json("/dashboard/api/settings");
	}

	/** @param {boolean} isOn */
	switchImages(isOn) {
		return this.#send("POST", "/dashboard/api/settings", {image_generation: isOn});
	}

	/** A machine begins nothing new, or takes part again. @param {string} node @param {boolean} isAway */
	drain(node, isAway) {
		return this.#send("POST", "/dashboard/api/drain", {node, drain: isAway});
	}

	/** The description of all routes. @returns {Promise<OpenApi>} */
	openapi() {
		return this.#json("/openapi.json");
	}

	/** A file, with the key in the header. @param {string} path */
	async blob(path) {
		// A picture never changes under its name.
		const response = await this.#ok(path, {cache: "default", signal: AbortSignal.timeout(FILE_TIMEOUT_MS)});
		return whileReading(response.blob());
	}

	/** @param {string} method @param {string} path @param {object} [body] @param {RequestInit} [options] */
	#send(method, path, body, options = {}) {
		const headers = {...options.headers, ...(body && {"Content-Type": "application/json"})};
		return this.#json(path, {...options, method, headers, ...(body && {body: JSON.stringify(body)})});
	}

	/** @param {string} path @param {RequestInit} [options] */
	async #json(path, options) {
		return readJson(await this.#ok(path, options));
	}

	/** @param {string} path @param {RequestInit} [options] */
	async #ok(path, options) {
		const response = await this.#fetch(path, options);
		if (!response.ok) throw await problemOf(response);
		return response;
	}

	/** @param {string} path @param {RequestInit} [options] */
	async #fetch(path, options = {}) {
		const headers = new Headers(options.headers);
		if (this.sendsKey) headers.set("X-API-Key", this.#readKey());
		try {
			return await fetch(this.url(path), {
				cache: "no-store",
				credentials: "omit",
				redirect: "error", // a key goes to the address it was given for and nowhere else
				signal: AbortSignal.timeout(TIMEOUT_MS),
				...options,
				headers
			});
		} catch (error) {
			throw new Unreachable(`${this.address} does not answer`, {cause: error});
		}
	}
}

/** @param {string} before @param {string} name of what it is about @param {string} [after] */
function at(before, name, after = "") {
	return before + encodeURIComponent(name) + after;
}

/** @param {Response} response */
async function readJson(response) {
	const text = await whileReading(response.text());
	try {
		return JSON.parse(text);
	} catch {
		throw new Problem("the answer is not JSON; another program may use this address", response.status);
	}
}

/** @param {Response} response */
async function problemOf(response) {
	const {status} = response;
	const text = await whileReading(response.text());
	try {
		const {detail, title, code, errors, error} = JSON.parse(text);
		// Places of LoRAs are counted for programs; their names follow.
		return new Problem(String(detail ?? title ?? error ?? `HTTP ${status}`).replace(/\bloras\.\d+\.name: /g, ""), status, code, errors);
	} catch {
		return new Problem(`the service answered with HTTP ${status}`, status);
	}
}

/** A connection may break in the middle of an answer. @template T @param {Promise<T>} body */
async function whileReading(body) {
	try {
		return await body;
	} catch (error) {
		throw new Unreachable("the answer broke off", {cause: error});
	}
}
