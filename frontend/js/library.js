/** LoRAs: the libraries of both services, files on their way there, and the nodes that use them. */

import {isReachable} from "./connection.js";
import {messageOf} from "./format.js";
import * as commands from "./graph/commands.js";
import {freeIds, newNode, nodesOf, sourcesOf} from "./graph/graph.js";
import {NODE_TYPES} from "./graph/table.js";
import {connectionTo} from "./services.js";

const APART_PX = 60;
const LORA_HEIGHT_PX = 370;

/** @param {File} file */
export const isLoraFile = file => /\.safetensors$/i.test(file.name);

export class Library {
	#connections;
	#store;
	#editor;
	#reveal;
	/** Files that did not arrive, to send again. @type {Map<string, File>} */
	#files = new Map();

	/** @param {Connections} connections @param {Store} store @param {Editor} editor @param {() => void} reveal brings nodes into view */
	constructor(connections, store, editor, reveal) {
		this.#connections = connections;
		this.#store = store;
		this.#editor = editor;
		this.#reveal = reveal;
	}

	/** Reads the lists whenever a service comes. */
	follow() {
		for (const {name} of Object.values(this.#connections)) {
			this.#store.watch(
				({services}) => [isReachable(services[name])],
				isUp => void (isUp && this.refresh(name))
			);
		}
	}

	/** @param {ServiceName} service */
	async refresh(service) {
		try {
			const {loras} = await this.#ask(service, client => client.loras());
			this.#store.setService(service, {loras, lorasError: ""});
		} catch (error) {
			this.#store.setService(service, {loras: [], lorasError: messageOf(error)});
		}
	}

	/** Uploads files, each with a node of its own, wired to every Model node. @type {LibraryFn.add} */
	async add(files, place = null) {
		const ids = this.#addNodes(
			files.map(() => null),
			place
		);
		await Promise.all(files.map((file, index) => this.fill(String(ids[index]), file)));
	}

	/** A node for a LoRA of the library. @param {string} name */
	use(name) {
		this.#addNodes([name], null);
	}

	/** Sends the file of a node again. @param {string} nodeId */
	async again(nodeId) {
		const file = this.#files.get(nodeId);
		if (file) await this.fill(nodeId, file);
	}

	/** @type {LibraryFn.change} */
	async change(service, lora, changes) {
		try {
			const changed = await this.#ask(service, client => client.changeLora(lora.name, changes));
			if (changed.name !== lora.name) this.#rename(lora.name, changed.name);
			return "";
		} catch (error) {
			return messageOf(error);
		}
	}

	/** @param {ServiceName} service @param {Lora} lora */
	async delete(service, {name}) {
		try {
			await this.#ask(service, client => client.deleteLora(name));
			this.#store.say(`${name} is deleted.`);
		} catch (error) {
			this.#store.say(`Not deleted: ${messageOf(error)}.`);
		}
	}

	/** A file for a node that is there: to every service that answers and does not have it already, as those have that share a folder. @param {string} nodeId @param {File} file */
	async fill(nodeId, file) {
		const targets = Object.values(this.#connections).filter(({state}) => isReachable(state));
		this.#files.set(nodeId, file);
		this.#setUpload(nodeId, {filename: file.name, size: file.size, phase: "sending", fraction: 0, error: ""});
		try {
			/** @type {StoredLora | undefined} */
			let lora;
			for (const {name, state} of targets) {
				if (lora) await this.refresh(name);
				if (lora && this.#store.state.services[name]?.loras.some(({sha256}) => sha256 === lora?.sha256)) continue;
				this.#setUpload(nodeId, {to: targets.length > 1 ? state.name : null, fraction: 0});
				lora = await this.#ask(name, client => client.uploadLora(file, fraction => this.#setUpload(nodeId, {fraction})));
				await this.refresh(name);
			}
			if (!lora) throw new Error("No service answers. Try again when one does.");
			this.#files.delete(nodeId);
			const {[nodeId]: _, ...rest} = this.#store.state.uploads;
			this.#store.set({uploads: rest});
			if (this.#editor.graph.nodes[nodeId]) this.#editor.setValues(nodeId, {name: lora.name});
		} catch (error) {
			this.#setUpload(nodeId, {phase: "failed", error: messageOf(error)});
			this.#store.set({announcement: `Not uploaded: ${messageOf(error)}`});
		}
	}

	/** @template T @param {ServiceName} service @param {Call<T>} call */
	#ask(service, call) {
		return connectionTo(this.#connections, service).ask(call);
	}

	/** @type {LibraryFn.addNodes} */
	#addNodes(names, place) {
		const {graph} = this.#editor;
		const models = nodesOf(graph).filter(({kind}) => kind === "model");
		const first = models[0];
		const x = place?.x ?? (first?.x ?? 0) - NODE_TYPES.lora.width - APART_PX;
		const y = place?.y ?? (first?.y ?? 0) + LORA_HEIGHT_PX * (first ? sourcesOf(graph, first.id, "loras").length : 0);
		const nextId = freeIds(graph, "nodes");
		const nodes = names.map((name, index) => newNode(nextId(), "lora", {x, y: y + index * LORA_HEIGHT_PX}, {name}));
		const makers = nodes.flatMap(node => [() => commands.addNode(node), ...models.map(({id}) => commands.connecting(`${node.id}.lora`, `${id}.loras`))]);
		this.#editor.do(commands.together(nodes.length === 1 ? "add a LoRA" : `add ${nodes.length} LoRAs`, graph, makers));
		this.#editor.select(nodes.map(({id}) => id));
		// What is in them is read when it is first used.
		if (!place || nodes.length > 1) void import("./nodes/lora.js").then(this.#reveal, this.#reveal);
		return nodes.map(({id}) => id);
	}

	/** Nodes that use it go on using it. @param {string} before @param {string} after */
	#rename(before, after) {
		const nodes = nodesOf(this.#editor.graph).filter(({kind, values}) => kind === "lora" && values.name === before);
		this.#editor.do(
			commands.together(
				"rename a LoRA",
				this.#editor.graph,
				nodes.map(
					({id}) =>
						graph =>
							commands.setValues(graph, id, {name: after})
				)
			)
		);
	}

	/** @type {LibraryFn.setUpload} */
	#setUpload(nodeId, patch) {
		const {uploads} = this.#store.state;
		const before = uploads[nodeId] ?? {filename: "", size: 0, fraction: 0, to: null, phase: "sending", error: ""};
		this.#store.set({uploads: {...uploads, [nodeId]: {...before, ...patch}}});
	}
}
