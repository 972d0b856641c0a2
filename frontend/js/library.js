/** LoRAs: the libraries of both services, files on their way there, and the nodes that use them. */

import {isReachable} from "./connection.js";
import {messageOf} from "./format.js";
import * as commands from "./graph/commands.js";
import {freeIds, newNode, nodesOf, sourcesOf} from "./graph/graph.js";
import {NODE_TYPES} from "./graph/table.js";
import {connectionTo, whenUp} from "./services.js";

const APART_PX = 60;
const LORA_HEIGHT_PX = 370;

/** @param {File} file */
export const isLoraFile = file => /\.safetensors$/i.test(file.name);

/** @type {Fn.newLibrary} */
export function newLibrary(connections, store, editor, reveal) {
	/** Files that did not arrive, to send again. @type {Map<string, File>} */
	const files = new Map();
	/** @type {Library} */
	const own = {
		follow: () => whenUp(store, connections, ({name}) => void own.refresh(name)),

		async refresh(service) {
			try {
				const {loras} = await ask(service, client => client.loras());
				store.setService(service, {loras, lorasError: ""});
			} catch (error) {
				store.setService(service, {loras: [], lorasError: messageOf(error)});
			}
		},

		async add(files, place = null) {
			const ids = addNodes(files.map(() => null), place);
			const fill = async (/** @type {File} */ file, /** @type {string} */ id) => {
				await own.fill(id, file);
				const name = editor.graph.nodes[id]?.values.name;
				if (name && isThere(String(name), id)) editor.do(commands.removeNodes(editor.graph, [id]));
			};
			await Promise.all(files.map((file, index) => fill(file, String(ids[index]))));
		},

		use(name) {
			if (!isThere(name)) addNodes([name], null);
		},

		async again(nodeId) {
			const file = files.get(nodeId);
			if (file) await own.fill(nodeId, file);
		},

		async change(service, lora, changes) {
			try {
				const changed = await ask(service, client => client.changeLora(lora.name, changes));
				if (changed.name !== lora.name) rename(lora.name, changed.name);
				return "";
			} catch (error) {
				return messageOf(error);
			}
		},

		async delete(service, {name}) {
			try {
				await ask(service, client => client.deleteLora(name));
				store.say(`${name} is deleted.`);
			} catch (error) {
				store.say(`Not deleted: ${messageOf(error)}.`);
			}
		},

		/** A file for a node that is there: to every service that answers and does not have it already, as those have that share a folder. */
		async fill(nodeId, file) {
			const targets = Object.values(connections).filter(({state}) => isReachable(state));
			files.set(nodeId, file);
			setUpload(nodeId, {filename: file.name, size: file.size, phase: "sending", fraction: 0, error: ""});
			try {
				/** @type {StoredLora | undefined} */
				let lora;
				for (const {name, state} of targets) {
					if (lora) await own.refresh(name);
					if (lora && store.state.services[name]?.loras.some(({sha256}) => sha256 === lora?.sha256)) continue;
					setUpload(nodeId, {to: targets.length > 1 ? state.name : null, fraction: 0});
					lora = await ask(name, client => client.uploadLora(file, fraction => setUpload(nodeId, {fraction})));
					await own.refresh(name);
				}
				if (!lora) throw new Error("No service answers. Try again when one does.");
				files.delete(nodeId);
				const {[nodeId]: _, ...rest} = store.state.uploads;
				store.set({uploads: rest});
				if (editor.graph.nodes[nodeId]) editor.setValues(nodeId, {name: lora.name});
			} catch (error) {
				setUpload(nodeId, {phase: "failed", error: messageOf(error)});
				store.set({announcement: `Not uploaded: ${messageOf(error)}`});
			}
		}
	};
	return own;

	/** @type {Fn.libraryAsk} */
	function ask(service, call) {
		return connectionTo(connections, service).ask(call);
	}

	/** @type {Fn.isThere} */
	function isThere(name, but = "") {
		const there = nodesOf(editor.graph).find(({id, kind, values}) => id !== but && kind === "lora" && values.name === name);
		if (there) {
			editor.select([there.id]);
			store.say(`${name} has a node already.`);
		}
		return Boolean(there);
	}

	/** @type {Fn.addNodes} */
	function addNodes(names, place) {
		const {graph} = editor;
		const models = nodesOf(graph).filter(({kind}) => kind === "model");
		const first = models[0];
		const x = place?.x ?? (first?.x ?? 0) - NODE_TYPES.lora.width - APART_PX;
		const y = place?.y ?? (first?.y ?? 0) + LORA_HEIGHT_PX * (first ? sourcesOf(graph, first.id, "loras").length : 0);
		const nextId = freeIds(graph, "nodes");
		const nodes = names.map((name, index) => newNode(nextId(), "lora", {x, y: y + index * LORA_HEIGHT_PX}, {name}));
		const makers = nodes.flatMap(node => [() => commands.addNode(node), ...models.map(({id}) => commands.connecting(`${node.id}.lora`, `${id}.loras`))]);
		editor.do(commands.together(nodes.length === 1 ? "add a LoRA" : `add ${nodes.length} LoRAs`, graph, makers));
		editor.select(nodes.length > 1 ? [] : nodes.map(({id}) => id)); // of several the view would be fitted to them alone
		if (!place || nodes.length > 1) reveal();
		return nodes.map(({id}) => id);
	}

	/** Nodes that use it go on using it. @type {Fn.rename} */
	function rename(before, after) {
		const nodes = nodesOf(editor.graph).filter(({kind, values}) => kind === "lora" && values.name === before);
		editor.do(
			commands.together(
				"rename a LoRA",
				editor.graph,
				nodes.map(
					({id}) =>
						graph =>
							commands.setValues(graph, id, {name: after})
				)
			)
		);
	}

	/** @type {Fn.setUpload} */
	function setUpload(nodeId, patch) {
		const {uploads} = store.state;
		const before = uploads[nodeId] ?? {filename: "", size: 0, fraction: 0, to: null, phase: "sending", error: ""};
		store.set({uploads: {...uploads, [nodeId]: {...before, ...patch}}});
	}
}
