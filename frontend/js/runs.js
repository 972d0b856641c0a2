/** Sends requests, follows their jobs until they end, cancels them. */

import {Problem, Unreachable} from "./api.js";
import {dataUrl, isAsset, readAsset} from "./assets.js";
import {isReachable} from "./connection.js";
import {failedWords, messageOf} from "./format.js";
import {wiresInto} from "./graph/graph.js";
import {orderOf} from "./graph/request.js";
import {planOf, samplersBefore, samplersOf} from "./graph/plan.js";
import {randomHex} from "./random.js";
import {connectionTo} from "./services.js";

/** Places in line move when another job begins; asked for at most this often. */
const POSITIONS_MS = 400;
const FIRST_IN_LINE = 4;
/** What the events did not tell, and what the service did not take, is asked and sent again. */
const AGAIN_MS = 3000;

export class Runs {
	#connections;
	#store;
	#onPicture;
	/** Runs that are being sent now. @type {Set<string>} */
	#sending = new Set();
	/** Services that are soon asked for places in line. @type {Set<ServiceName>} */
	#asking = new Set();

	/** @param {Connections} connections @param {Store} store @param {(service: ServiceName) => void} onPicture */
	constructor(connections, store, onPicture) {
		this.#connections = connections;
		this.#store = store;
		this.#onPicture = onPicture;
	}

	/** Runs every sampler, or these, and the ones they start from. False when something is missing; then it is said where. @param {readonly string[]} [wanted] */
	start(wanted) {
		const {graph} = this.#store.state.document;
		/** @type {Set<string>} */
		const needed = new Set();
		/** @param {string} id */
		const need = id => {
			samplersBefore(graph, id)
				.filter(before => !needed.has(before))
				.forEach(need);
			needed.add(id);
		};
		(wanted ?? samplersOf(graph).map(({id}) => id)).forEach(need);
		const orders = [...needed].flatMap(id => orderOf(graph, id) ?? []);
		const faults = orders.flatMap(order => [...order.faults, ...this.#missingService(order)]);
		if (faults.length || !orders.length) {
			this.#store.set({faults: byNode(faults)});
			this.#store.say(faults[0]?.message ?? "There is no Sampler node that could draw. Add one, or open an example.");
			return false;
		}
		const keys = new Map(orders.map(({sampler}) => [sampler, newKey()]));
		const going = this.#all.filter(({phase, sampler}) => isOpen(phase) || !needed.has(sampler));
		this.#store.set({runs: [...going, ...orders.map(order => newRun(order, keys))], faults: {}});
		this.#sendAll();
		return true;
	}

	/** @param {string} key */
	async cancel(key) {
		const run = this.#find(key);
		if (run?.id) {
			const {id} = run;
			this.#patch(key, {isCancelling: true});
			try {
				await this.#ask(run.service, client => client.cancel(id));
				await this.#look(run);
			} catch (error) {
				this.#patch(key, {isCancelling: false});
				this.#store.say(`Not cancelled: ${messageOf(error)}.`);
			}
		} else if (run) {
			// One on its way is cancelled once it has an id.
			this.#patch(key, this.#sending.has(key) ? {isCancelling: true} : {phase: "cancelled"});
		}
	}

	cancelAll() {
		for (const {key} of this.#open) void this.cancel(key);
	}

	/** The same request once more. @param {string} key */
	retry(key) {
		const run = this.#find(key);
		if (run) {
			this.#store.set({runs: [...this.#all.filter(each => each !== run), {...run, ...FRESH, key: newKey()}]});
			this.#sendAll();
		}
	}

	/** @param {string} key */
	dismiss(key) {
		this.#store.set({runs: this.#all.filter(run => run.key !== key)});
	}

	/** Follows the open runs for as long as the page lives. */
	follow() {
		setInterval(() => void this.#again(), AGAIN_MS);
		for (const connection of Object.values(this.#connections)) {
			connection.listen(event => this.#onEvent(connection.name, event));
			this.#store.watch(
				({services}) => [isReachable(services[connection.name])],
				isUp => {
					if (!isUp) return;
					this.#sendAll();
					void this.#lookAtAll(connection.name);
					void this.#showAgain(connection);
				}
			);
		}
	}

	/** @type {RunsFn.onEvent} */
	#onEvent(service, {name, data}) {
		if (name === "reset") return void this.#lookAtAll(service);
		if (["started", "cancelled", "queue"].includes(name)) this.#askPositions(service);
		const id = data?.job_id ?? data?.id;
		const run = this.#open.find(open => open.service === service && open.id === id);
		if (!run) {
			if (name === "succeeded") this.#onPicture(service); // somebody else's
		} else if (name === "queued") this.#patch(run.key, {phase: "queued", position: data.position, progress: null});
		else if (name === "loading") this.#patch(run.key, {phase: "running", loading: {what: data.what ?? "", fraction: data.fraction ?? null}});
		else if (name === "started") this.#patch(run.key, {phase: "running", position: null, loading: null});
		else if (name === "progress") this.#patch(run.key, {phase: "running", position: null, loading: null, progress: data, preview: data.preview || run.preview});
		else if (["succeeded", "failed", "cancelled"].includes(name)) this.#update(run.key, data);
	}

	get #all() {
		return this.#store.state.runs;
	}

	get #open() {
		return this.#all.filter(({phase}) => isOpen(phase));
	}

	/** Those of a service that it knows; of every one that answers, if none is named. @param {ServiceName} [service] */
	#sent(service) {
		const {services} = this.#store.state;
		return this.#open.filter(run => run.id !== null && (service ? run.service === service : isReachable(services[run.service])));
	}

	/** @template T @param {ServiceName} service @param {Call<T>} call */
	#ask(service, call) {
		return connectionTo(this.#connections, service).ask(call);
	}

	#sendAll() {
		for (const run of this.#open) {
			const isFree = run.id === null && !this.#sending.has(run.key) && isReachable(this.#store.state.services[run.service]);
			const waits = run.parts.some(({run: other}) => other !== null && this.#open.some(({key}) => key === other));
			if (isFree && !waits) void this.#send(run);
		}
	}

	/** @param {Run} run */
	async #send(run) {
		this.#sending.add(run.key);
		try {
			const body = await this.#withParts(run);
			const {id, position} = await this.#ask(run.service, client => client.submit(body, run.key));
			this.#patch(run.key, {id, position, phase: "queued"});
			await this.#look({...run, id}); // it may have begun before its id was known here
			if (this.#find(run.key)?.isCancelling) await this.cancel(run.key);
		} catch (error) {
			if (!isPassing(error)) this.#refuse(run, error); // else it stays in line and is sent again under the same key
		} finally {
			this.#sending.delete(run.key);
		}
	}

	/** The body with its pictures. @param {Run} run */
	async #withParts(run) {
		const body = {...run.body};
		for (const part of run.parts) {
			const picture = await this.#pictureOf(run, part);
			if (part.field === "reference_images") body.reference_images = [...(body.reference_images ?? []), picture];
			else body[part.field] = picture;
		}
		return body;
	}

	/** @param {Run} run @param {RunPart} part @returns {Promise<string>} */
	async #pictureOf(run, {source, run: other}) {
		if (other !== null) {
			const from = this.#store.state.shown[source];
			const image = from?.job.result?.images[0];
			if (!from || !image) throw new Error(NO_START);
			return from.service === run.service ? image.id : dataUrl(await this.#ask(from.service, client => client.blob(image.image_url)));
		}
		if (!isAsset(source)) return source;
		const blob = await readAsset(source);
		if (!blob) throw new Error("A picture that was dropped here is not in this browser any more. Drop it again.");
		return dataUrl(blob);
	}

	async #again() {
		this.#sendAll();
		for (const run of this.#sent().slice(0, FIRST_IN_LINE)) await this.#look(run);
	}

	/** @param {ServiceName} service */
	async #lookAtAll(service) {
		for (const run of this.#sent(service)) await this.#look(run);
	}

	/** @param {Run} run */
	async #look({key, service, id}) {
		try {
			this.#update(key, await this.#ask(service, client => client.job(id ?? "")));
		} catch (error) {
			if (error instanceof Problem && error.status === 404) this.#fail(key, "The service does not know this run any more.");
		}
	}

	/** @param {ServiceName} service */
	#askPositions(service) {
		if (this.#asking.has(service)) return;
		this.#asking.add(service);
		setTimeout(async () => {
			this.#asking.delete(service);
			const waiting = this.#sent(service).filter(({phase}) => phase === "queued");
			for (const run of waiting.slice(0, FIRST_IN_LINE)) await this.#look(run);
		}, POSITIONS_MS);
	}

	/** @param {string} key @param {Job} job */
	#update(key, job) {
		const run = this.#find(key);
		if (!run || !isOpen(run.phase)) return;
		if (job.status === "queued" || job.status === "running") {
			this.#patch(key, {phase: job.status, position: job.position, progress: job.progress ?? run.progress});
		} else if (job.status === "failed") {
			this.#fail(key, job.error?.message ?? "The service gave no reason.");
		} else if (job.status === "cancelled") {
			this.#patch(key, {phase: "cancelled", preview: ""});
			this.#store.say("Cancelled.");
			this.#failThoseAfter(key, "The picture it starts from was cancelled.");
		} else {
			this.#show(run.sampler, run.service, job);
			this.#store.set({announcement: failedWords(job.result?.failed_images ?? []) || "The picture is finished."});
			this.dismiss(key);
			notify(job);
			this.#onPicture(run.service);
			this.#sendAll();
		}
	}

	/** @param {string} sampler @param {ServiceName} service @param {Job} job */
	#show(sampler, service, job) {
		this.#store.set({shown: {...this.#store.state.shown, [sampler]: {service, job, index: 0}}});
	}

	/** Puts the jobs of before a reload back on their nodes. @param {Connection} connection */
	async #showAgain(connection) {
		for (const [sampler, {service, id}] of Object.entries(this.#store.state.toShow)) {
			if (service !== connection.name) continue;
			try {
				const job = await connection.ask(client => client.job(id));
				if (job.result && !this.#store.state.shown[sampler]) this.#show(sampler, service, job);
			} catch (error) {
				if (isPassing(error)) return;
			}
			const {[sampler]: _, ...rest} = this.#store.state.toShow;
			this.#store.set({toShow: rest});
		}
	}

	/** The service's words, each at the node that its field comes from. @param {Run} run @param {unknown} error */
	#refuse(run, error) {
		const fields = error instanceof Problem ? error.fields : [];
		const faults = fields.map(({field, message}) => ({...this.#placeOf(run.sampler, field), message}));
		this.#fail(run.key, messageOf(error));
		this.#store.set({faults: {...this.#store.state.faults, ...byNode(faults)}});
		this.#store.say(messageOf(error));
	}

	/** @param {string} sampler @param {string} field of a request: `width`, `loras.1.name` … */
	#placeOf(sampler, field) {
		const plan = planOf(this.#store.state.document.graph, sampler);
		const [, name = field, place] = /^([a-z_]+)(?:[.[](\d+))?/.exec(field) ?? [];
		const lora = plan?.loras.filter(({values}) => values.name !== null)[Number(place ?? 0)];
		/** @type {Readonly<Record<string, GraphNode | null | undefined>>} */
		const nodes = {
			prompt: plan?.prompt,
			negative_prompt: plan?.negative,
			true_cfg_scale: plan?.negative,
			model: plan?.model,
			backend: plan?.model,
			loras: lora ?? plan?.model,
			image: plan?.image,
			strength: plan?.image,
			mask: plan?.mask,
			reference_images: plan?.references
		};
		return {node: nodes[name]?.id ?? sampler, field: name};
	}

	/** @param {Order} order @returns {Fault[]} */
	#missingService({sampler, service}) {
		const model = wiresInto(this.#store.state.document.graph, sampler, "model")[0]?.from.node;
		if (!model || Object.hasOwn(this.#connections, service)) return [];
		return [{node: model, field: "service", message: `This page knows no ${service.toUpperCase()} service. Choose the other one.`}];
	}

	/** @param {string} key @param {string} error */
	#fail(key, error) {
		this.#patch(key, {phase: "failed", error, progress: null, position: null, preview: ""});
		this.#failThoseAfter(key, NO_START);
	}

	/** @param {string} key @param {string} error */
	#failThoseAfter(key, error) {
		for (const run of this.#open) {
			if (run.id === null && run.parts.some(part => part.run === key)) this.#fail(run.key, error);
		}
	}

	/** @param {string} key */
	#find(key) {
		return this.#all.find(run => run.key === key);
	}

	/** @param {string} key @param {Partial<Run>} patch */
	#patch(key, patch) {
		this.#store.set({runs: this.#all.map(run => (run.key === key ? {...run, ...patch} : run))});
	}
}

const NO_START = "The picture it starts from was not drawn.";

/** @type {Omit<Run, "key" | "service" | "sampler" | "body" | "parts">} */
export const FRESH = {id: null, phase: "unsent", position: null, progress: null, preview: "", loading: null, error: "", isCancelling: false};

/** Whether a picture may still come. @param {Run["phase"]} phase */
export function isOpen(phase) {
	return phase === "unsent" || phase === "queued" || phase === "running";
}

/** What draws, else what is next. @param {readonly Run[]} runs */
export function currentRun(runs) {
	return runs.find(({phase}) => phase === "running") ?? runs.find(({phase}) => isOpen(phase));
}

/** The run to show for a sampler: what draws, else what is next, else how the last one ended. @type {RunsFn.runOf} */
export function runOf(runs, sampler) {
	const mine = runs.filter(run => run.sampler === sampler);
	return currentRun(mine) ?? mine.at(-1);
}

/** An idempotency key: a request that is sent twice is one job. */
const newKey = () => `page-${randomHex(16)}`;

/** @type {RunsFn.newRun} */
function newRun({sampler, service, body, parts}, keys) {
	const key = (/** @type {string} */ id) => keys.get(id) ?? "";
	return {
		...FRESH,
		key: key(sampler),
		service: /** @type {ServiceName} */ (service),
		sampler,
		body,
		parts: parts.map(({field, source, sampler: other}) => ({field, source: other ?? source, run: other === null ? null : key(other)}))
	};
}

/** A browser's notification, where it was allowed and nobody looks. @param {Job} job */
function notify({id, request}) {
	if (document.hidden && "Notification" in window && Notification.permission === "granted") {
		new Notification("The picture is finished", {body: request.prompt, tag: id});
	}
}

/** @param {readonly Fault[]} faults */
function byNode(faults) {
	/** @type {Record<string, Record<string, string>>} */
	const nodes = {};
	for (const {node, field, message} of faults) nodes[node] = {...nodes[node], [field]: message};
	return nodes;
}

/** Whether the same request may succeed later. @param {unknown} error */
function isPassing(error) {
	return error instanceof Unreachable || (error instanceof Problem && (error.status === 401 || error.code === "unavailable"));
}
