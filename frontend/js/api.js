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

/** @type {(address: string, readKey: () => string) => ServiceClient} the key that `readKey` gives is sent; "": none */
export function serviceClient(address, readKey) {
	const forLong = () => ({signal: AbortSignal.timeout(LOAD_TIMEOUT_MS)});
	return {
		address,
		sendsKey: () => readKey() !== "",
		live: () => json("/health/live"),
		async ready() {
			const response = await ask("/health/ready");
			if (!response.ok && response.status !== 503) throw await problemOf(response);
			return readJson(response);
		},
		info: () => json("/info"),
		models: () => json("/api/models"),
		backends: () => json("/api/backends"),
		submit: (body, key) => send("POST", "/jobs", body, {headers: {"Idempotency-Key": key}}),
		job: id => json(at("/jobs/", id)),
		cancel: id => send("POST", at("/jobs/", id, "/cancel")),
		changeQueue: what => send("POST", `/queue/${what}`),
		async events(onEvent, signal) {
			const response = await ask("/events", {signal});
			if (!response.ok || !response.body) throw await problemOf(response);
			await whileReading(readEvents(response.body, onEvent));
		},
		images({limit, before = "", words = ""}) {
			const query = new URLSearchParams({limit: String(limit), ...(before && {before}), ...(words && {q: words})});
			return json(`/images?${query}`);
		},
		deleteImage: id => ok(at("/images/", id), {method: "DELETE"}),
		pinImage: (id, isPinned) => ok(at("/images/", id, "/pin"), {method: isPinned ? "PUT" : "DELETE"}),
		loras: () => json("/loras"),
		changeLora: (name, changes) => send("PATCH", at("/loras/", name), changes),
		deleteLora: name => ok(at("/loras/", name), {method: "DELETE"}),
		// `fetch` cannot tell how far it is, so this is the older way.
		uploadLora: (file, onProgress) =>
			new Promise((resolve, reject) => {
				const request = new XMLHttpRequest();
				request.open("PUT", address + at("/loras/", file.name));
				if (readKey()) request.setRequestHeader("X-API-Key", readKey());
				request.setRequestHeader("Content-Type", "application/octet-stream");
				request.upload.onprogress = ({loaded, total}) => onProgress(total ? loaded / total : 0);
				request.onload = async () => {
					const response = new Response(request.responseText, {status: request.status});
					if (response.ok) readJson(response).then(resolve, reject);
					else reject(await problemOf(response));
				};
				request.onerror = () => reject(new Unreachable(`${address} does not answer`));
				request.send(file);
			}),
		loadModel: model => send("POST", "/load-model", {model}, forLong()),
		unloadModel: () => send("POST", "/unload-model", undefined, forLong()),
		fleet: () => json("/dashboard/api/fleet"),
		imageStats: () => json("/dashboard/api/image-stats"),
		fleetSettings: () => json("/dashboard/api/settings"),
		switchImages: isOn => send("POST", "/dashboard/api/settings", {image_generation: isOn}),
		drain: (node, isAway) => send("POST", "/dashboard/api/drain", {node, drain: isAway}),
		openapi: () => json("/openapi.json"),
		async blob(path) {
			// A picture never changes under its name.
			const response = await ok(path, {cache: "default", signal: AbortSignal.timeout(FILE_TIMEOUT_MS)});
			return whileReading(response.blob());
		}
	};

	/** @type {Fn.send} */
	function send(method, path, body, options = {}) {
		const headers = {...options.headers, ...(body && {"Content-Type": "application/json"})};
		return json(path, {...options, method, headers, ...(body && {body: JSON.stringify(body)})});
	}

	/** @type {Ask<any>} */
	async function json(path, options) {
		return readJson(await ok(path, options));
	}

	/** @type {Ask<Response>} */
	async function ok(path, options) {
		const response = await ask(path, options);
		if (!response.ok) throw await problemOf(response);
		return response;
	}

	/** @type {Ask<Response>} */
	async function ask(path, options = {}) {
		const headers = new Headers(options.headers);
		if (readKey()) headers.set("X-API-Key", readKey());
		try {
			return await fetch(address + path, {
				cache: "no-store",
				credentials: "omit",
				redirect: "error", // a key goes to the address it was given for and nowhere else
				signal: AbortSignal.timeout(TIMEOUT_MS),
				...options,
				headers
			});
		} catch (error) {
			throw new Unreachable(`${address} does not answer`, {cause: error});
		}
	}
}

/** @type {Fn.apiAt} */
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

/** A connection may break in the middle of an answer. @type {Fn.whileReading} */
async function whileReading(body) {
	try {
		return await body;
	} catch (error) {
		throw new Unreachable("the answer broke off", {cause: error});
	}
}
