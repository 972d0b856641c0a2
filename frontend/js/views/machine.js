/** The machine: one line per GPU, what is loaded, how the services are. */

import {button, find, keep, make} from "../dom.js";
import {inShort, messageOf, modelTitle, precision} from "../format.js";
import {isReachable} from "../connection.js";
import {servicesOf} from "../services.js";
import {describe} from "./topbar.js";

/** @type {Fn.mountMachine} */
export function mountMachine({store, connections}, panel) {
	/** Services that load or unload now, with what they are told. @type {Map<ServiceName, "load" | "unload">} */
	const busy = new Map();
	const render = () => keep(panel, servicesOf(store.state), ({name}) => name, block, updateBlock);
	store.watch(({services}) => [services], render);

	/** @type {Fn.machineBlock} */
	function block({name, address}) {
		const select = make("select", {"aria-label": `Model to load on ${precision(name)}`});
		const load = button({words: "Load", kind: "quiet load", act: () => void change("load", select.value)});
		const unload = button({words: "Unload", kind: "quiet unload", act: () => void change("unload", "")});
		const key = button({words: "Enter the key", kind: "quiet key", act: () => store.set({keyAsked: name})});
		return make(
			"section.block",
			{"data-service": name},
			make("header", make("span.dot"), make("h3", precision(name)), make("p.hint.address", address.replace("http://", ""))),
			make("p.health"),
			make("ul.devices"),
			make("p.hint.about"),
			make("div.row.load-row", select, load, unload, key),
			make("progress", {max: 1, "aria-label": "Loading", hidden: true})
		);

		/** @type {Fn.change} */
		async function change(what, model) {
			busy.set(name, what);
			render();
			try {
				await connections[name]?.ask(client => (what === "load" ? client.loadModel(model) : client.unloadModel()));
				store.say(what === "load" ? `${modelTitle(model, store.state.services[name]?.models ?? [])} is loaded.` : "Unloaded.");
			} catch (error) {
				store.say(messageOf(error));
			} finally {
				busy.delete(name);
				render();
			}
		}
	}

	/** @type {Fn.machineUpdateBlock} */
	function updateBlock(element, service) {
		const {name, models, info, gpus, queue} = service;
		const isUp = isReachable(service);
		const words = describe(service);
		element.dataset.phase = service.phase;
		find(".health", element).textContent = `${words[0]?.toUpperCase()}${words.slice(1)}`;
		const usable = models.filter(({available}) => available);
		const select = find("select", element);
		const chosen = select.value;
		keep(select, usable, ({id}) => id, ({id, title}) => make("option", {value: id}, title));
		select.value = chosen || (info?.default_model ?? "");
		find("button.load", element).disabled = busy.has(name) || !usable.length;
		find("button.unload", element).disabled = busy.has(name) || !gpus.some(({model}) => model);
		find(".key", element).hidden = service.phase !== "locked";
		for (const part of ["select", ".load", ".unload"]) find(part, element).hidden = !isUp;
		// A fetch of many gigabytes is told by the workers.
		const loading = queue?.workers.find(worker => worker.loading)?.loading;
		const bar = find("progress", element);
		bar.hidden = !isUp || (!loading && busy.get(name) !== "load");
		if (loading?.fraction) bar.value = loading.fraction;
		else bar.removeAttribute("value");
		const model = models.find(({is_default}) => is_default);
		const about = loading
			? `Loading: ${loading.what}`
			: model && info
				? `Draws with ${model.title} unless asked otherwise: ${inShort(info.default_model_reason)}.`
				: "";
		find(".about", element).textContent = isUp ? about : "";
		keep(find(".devices", element), isUp ? gpus : [], ({worker}) => worker, device, (row, gpu) => updateDevice(row, gpu, models));
	}
}

/** @param {GpuEvent} gpu */
function device({worker}) {
	return make(
		"li",
		make("p.device-name"),
		make("p.hint.device-model"),
		make("meter", {min: 0, max: 1, "aria-label": `Memory of ${worker}`}),
		make("p.hint.device-memory")
	);
}

/** @type {Fn.updateDevice} */
function updateDevice(row, {worker, cards, model, memory_mib, state}, models) {
	const total = cards.reduce((sum, {memory_total_mib}) => sum + memory_total_mib, 0);
	const used = cards.reduce((sum, {memory_used_mib}) => sum + (memory_used_mib ?? 0), 0) || (memory_mib ?? 0);
	const load = cards[0]?.utilization_percent ?? null;
	const memory = used && `${(used / 1024).toFixed(1)}${total ? ` of ${(total / 1024).toFixed(0)}` : ""} GiB`;
	const bar = find("meter", row);
	bar.hidden = !total;
	bar.value = total ? used / total : 0;
	find(".device-name", row).textContent = cards.map(({index, name}) => `GPU ${index}: ${name}`).join(" + ") || `CPU (worker ${worker})`;
	find(".device-model", row).textContent = `${model ? modelTitle(model, models) : "no model loaded"} · ${state}`;
	find(".device-memory", row).textContent = [memory, load === null ? "" : `${load} % busy`].filter(Boolean).join(" · ");
}
