/** Sends requests, follows their jobs until they end, cancels them. */

import {Problem, Unreachable} from "./api.js";
import {dataUrl, isAsset, readAsset} from "./assets.js";
import {isReachable} from "./connection.js";
import {failedWords, messageOf} from "./format.js";
import {wiresInto} from "./graph/graph.js";
import {orderOf} from "./graph/request.js";
import {planOf, samplersBefore, samplersOf} from "./graph/plan.js";
import {randomHex} from "./random.js";
import {connectionTo, whenUp} from "./services.js";

/** Places in line move when another job begins; asked for at most this often. */
const POSITIONS_MS = 400;
const FIRST_IN_LINE = 4;
/** What the events did not tell, and what the service did not take, is asked and sent again. */
const AGAIN_MS = 3000;

/** @type {Fn.newRuns} */
export function newRuns(connections, store, onPicture) {
	/** Runs that are being sent now. @type {Set<string>} */
	const sending = new Set();
	/** Services that are soon asked for places in line. @type {Set<ServiceName>} */
	const asking = new Set();
	const all = () => store.state.runs;
	const open = () => all().filter(({phase}) => isOpen(phase));
	/** @type {Runs} */
	const own = {
		start(wanted) {
			const {graph} = store.state.document;
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
			const faults = orders.flatMap(order => [...order.faults, ...missingService(order)]);
			if (faults.length || !orders.length) {
				store.set({faults: byNode(faults)});
				store.say(faults[0]?.message ?? "There is no Sampler node that could draw. Add one, or open an example.");
				return false;
			}
			const keys = new Map(orders.map(({sampler}) => [sampler, newKey()]));
			const going = all().filter(({phase, sampler}) => isOpen(phase) || !needed.has(sampler));
			store.set({runs: [...going, ...orders.map(order => newRun(order, keys))], faults: {}});
			sendAll();
			return true;
		},

		async cancel(key) {
			const run = find(key);
			if (run?.id) {
				const {id} = run;
				patch(key, {isCancelling: true});
				try {
					await ask(run.service, client => client.cancel(id));
					await look(run);
				} catch (error) {
					patch(key, {isCancelling: false});
					store.say(`Not cancelled: ${messageOf(error)}.`);
				}
			} else if (run) {
				// One on its way is cancelled once it has an id.
				patch(key, sending.has(key) ? {isCancelling: true} : {phase: "cancelled"});
			}
		},

		cancelAll() {
			for (const {key} of open()) void own.cancel(key);
		},

		retry(key) {
			const run = find(key);
			if (run) {
				store.set({runs: [...all().filter(each => each !== run), {...run, ...FRESH, key: newKey()}]});
				sendAll();
			}
		},

		dismiss(key) {
			store.set({runs: all().filter(run => run.key !== key)});
		},

		follow() {
			setInterval(() => void again(), AGAIN_MS);
			for (const {name, listen} of Object.values(connections)) listen(event => onEvent(name, event));
			whenUp(store, connections, connection => {
				sendAll();
				void lookAtAll(connection.name);
				void showAgain(connection);
			});
		}
	};
	return own;

	/** @type {Fn.onEvent} */
	function onEvent(service, {name, data}) {
		if (name === "reset") return void lookAtAll(service);
		if (["started", "cancelled", "queue"].includes(name)) askPositions(service);
		const id = data?.job_id ?? data?.id;
		const run = open().find(open => open.service === service && open.id === id);
		if (!run) {
			if (name === "succeeded") onPicture(service); // somebody else's
		} else if (name === "queued") patch(run.key, {phase: "queued", position: data.position, progress: null});
		else if (name === "loading") patch(run.key, {phase: "running", loading: {what: data.what ?? "", fraction: data.fraction ?? null}});
		else if (name === "started") patch(run.key, {phase: "running", position: null, loading: null});
		else if (name === "progress") patch(run.key, {phase: "running", position: null, loading: null, progress: data, preview: data.preview || run.preview});
		else if (["succeeded", "failed", "cancelled"].includes(name)) update(run.key, data);
	}

	/** @type {Fn.sent} */
	function sent(service) {
		const {services} = store.state;
		return open().filter(run => run.id !== null && (service ? run.service === service : isReachable(services[run.service])));
	}

	/** @type {Fn.runsAsk} */
	function ask(service, call) {
		return connectionTo(connections, service).ask(call);
	}

	function sendAll() {
		for (const run of open()) {
			const isFree = run.id === null && !sending.has(run.key) && isReachable(store.state.services[run.service]);
			const waits = run.parts.some(({run: other}) => other !== null && open().some(({key}) => key === other));
			if (isFree && !waits) void send(run);
		}
	}

	/** @param {Run} run */
	async function send(run) {
		sending.add(run.key);
		try {
			const body = await withParts(run);
			const {id, position} = await ask(run.service, client => client.submit(body, run.key));
			patch(run.key, {id, position, phase: "queued"});
			await look({...run, id}); // it may have begun before its id was known here
			if (find(run.key)?.isCancelling) await own.cancel(run.key);
		} catch (error) {
			if (!isPassing(error)) refuse(run, error); // else it stays in line and is sent again under the same key
		} finally {
			sending.delete(run.key);
		}
	}

	/** The body with its pictures. @param {Run} run */
	async function withParts(run) {
		const body = {...run.body};
		for (const part of run.parts) {
			const picture = await pictureOf(run, part);
			if (part.field === "reference_images") body.reference_images = [...(body.reference_images ?? []), picture];
			else body[part.field] = picture;
		}
		return body;
	}

	/** @type {Fn.pictureOf} */
	async function pictureOf(run, {source, run: other}) {
		if (other !== null) {
			const from = store.state.shown[source];
			const image = from?.job.result?.images[0];
			if (!from || !image) throw new Error(NO_START);
			return from.service === run.service ? image.id : dataUrl(await ask(from.service, client => client.blob(image.image_url)));
		}
		if (!isAsset(source)) return source;
		const blob = await readAsset(source);
		if (!blob) throw new Error("A picture that was dropped here is not in this browser any more. Drop it again.");
		return dataUrl(blob);
	}

	async function again() {
		sendAll();
		for (const run of sent().slice(0, FIRST_IN_LINE)) await look(run);
	}

	/** @param {ServiceName} service */
	async function lookAtAll(service) {
		for (const run of sent(service)) await look(run);
	}

	/** @param {Run} run */
	async function look({key, service, id}) {
		try {
			update(key, await ask(service, client => client.job(id ?? "")));
		} catch (error) {
			if (error instanceof Problem && error.status === 404) fail(key, "The service does not know this run any more.");
		}
	}

	/** @param {ServiceName} service */
	function askPositions(service) {
		if (asking.has(service)) return;
		asking.add(service);
		setTimeout(async () => {
			asking.delete(service);
			const waiting = sent(service).filter(({phase}) => phase === "queued");
			for (const run of waiting.slice(0, FIRST_IN_LINE)) await look(run);
		}, POSITIONS_MS);
	}

	/** @type {Fn.update} */
	function update(key, job) {
		const run = find(key);
		if (!run || !isOpen(run.phase)) return;
		if (job.status === "queued" || job.status === "running") {
			patch(key, {phase: job.status, position: job.position, progress: job.progress ?? run.progress});
		} else if (job.status === "failed") {
			fail(key, job.error?.message ?? "The service gave no reason.");
		} else if (job.status === "cancelled") {
			patch(key, {phase: "cancelled", preview: ""});
			store.say("Cancelled.");
			failThoseAfter(key, "The picture it starts from was cancelled.");
		} else {
			show(run.sampler, run.service, job);
			store.set({announcement: failedWords(job.result?.failed_images ?? []) || "The picture is finished."});
			own.dismiss(key);
			notify(job);
			onPicture(run.service);
			sendAll();
		}
	}

	/** @type {Fn.runsShow} */
	function show(sampler, service, job) {
		store.set({shown: {...store.state.shown, [sampler]: {service, job, index: 0}}});
	}

	/** @type {Fn.showAgain} */
	async function showAgain(connection) {
		for (const [sampler, {service, id}] of Object.entries(store.state.toShow)) {
			if (service !== connection.name) continue;
			try {
				const job = await connection.ask(client => client.job(id));
				if (job.result && !store.state.shown[sampler]) show(sampler, service, job);
			} catch (error) {
				if (isPassing(error)) return;
			}
			const {[sampler]: _, ...rest} = store.state.toShow;
			store.set({toShow: rest});
		}
	}

	/** @type {Fn.refuse} */
	function refuse(run, error) {
		const fields = error instanceof Problem ? error.fields : [];
		const faults = fields.map(({field, message}) => ({...placeOf(run.sampler, field), message}));
		fail(run.key, messageOf(error));
		store.set({faults: {...store.state.faults, ...byNode(faults)}});
		store.say(messageOf(error));
	}

	/** @type {Fn.placeOf} */
	function placeOf(sampler, field) {
		const plan = planOf(store.state.document.graph, sampler);
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

	/** @type {Fn.missingService} */
	function missingService({sampler, service}) {
		const model = wiresInto(store.state.document.graph, sampler, "model")[0]?.from.node;
		if (!model || Object.hasOwn(connections, service)) return [];
		return [{node: model, field: "service", message: `This page knows no ${service.toUpperCase()} service. Choose the other one.`}];
	}

	/** @type {Fn.fail} */
	function fail(key, error) {
		patch(key, {phase: "failed", error, progress: null, position: null, preview: ""});
		failThoseAfter(key, NO_START);
	}

	/** @type {Fn.failThoseAfter} */
	function failThoseAfter(key, error) {
		for (const run of open()) {
			if (run.id === null && run.parts.some(part => part.run === key)) fail(run.key, error);
		}
	}

	/** @param {string} key */
	function find(key) {
		return all().find(run => run.key === key);
	}

	/** @type {Fn.patch} */
	function patch(key, patch) {
		store.set({runs: all().map(run => (run.key === key ? {...run, ...patch} : run))});
	}
}

const NO_START = "The picture it starts from was not drawn.";

/** @type {Omit<Run, "key" | "service" | "sampler" | "body" | "parts">} */
export const FRESH = {id: null, phase: "unsent", position: null, progress: null, preview: "", loading: null, error: "", isCancelling: false};

/** Whether a picture may still come. @type {Fn.isOpen} */
export function isOpen(phase) {
	return phase === "unsent" || phase === "queued" || phase === "running";
}

/** What draws, else what is next. @param {readonly Run[]} runs */
export function currentRun(runs) {
	return runs.find(({phase}) => phase === "running") ?? runs.find(({phase}) => isOpen(phase));
}

/** @type {Fn.runOf} */
export function runOf(runs, sampler) {
	const mine = runs.filter(run => run.sampler === sampler);
	return currentRun(mine) ?? mine.at(-1);
}

/** An idempotency key: a request that is sent twice is one job. */
const newKey = () => `page-${randomHex(16)}`;

/** @type {Fn.newRun} */
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

/** @type {Fn.byNode} */
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
