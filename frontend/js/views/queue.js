/** What runs and waits, of both services side by side. */

import {button, find, icon, keep, make} from "../dom.js";
import {eta, messageOf, precision, runStatus, runStep, showProgress} from "../format.js";
import {isOpen} from "../runs.js";
import {servicesOf} from "../services.js";

/** @type {Fn.mountQueue} */
export function mountQueue({store, runs, connections}, panel) {
	const blocks = make("div.blocks");
	const words = "Tell me when a picture is finished";
	const allow = button({
		words,
		act: async () => {
			const answer = await Notification.requestPermission();
			allow.hidden = true;
			store.say(answer === "granted" ? "The browser will tell you, when you look elsewhere." : "The browser does not allow it.");
		}
	});
	allow.hidden = !("Notification" in window) || Notification.permission !== "default";
	panel.append(blocks, allow);
	store.watch(state => [state.services, state.runs], () => keep(blocks, servicesOf(store.state), ({name}) => name, block, updateBlock));

	/** @type {Fn.queueBlock} */
	function block({name}) {
		const ask = async (/** @type {"pause" | "resume" | "clear"} */ what) => {
			try {
				const queue = await connections[name]?.ask(client => client.changeQueue(what));
				store.setService(name, {queue: queue ?? null});
			} catch (error) {
				store.say(messageOf(error));
			}
		};
		const pause = button({
			label: `Pause ${precision(name)}`,
			icon: "pause",
			kind: "bare pause",
			act: () => void ask(store.state.services[name]?.queue?.paused ? "resume" : "pause")
		});
		const clear = button({label: `Cancel everything that waits on ${precision(name)}`, icon: "delete", kind: "bare clear", act: () => void ask("clear")});
		return make("section.block", {"data-service": name}, make("header", make("h3", precision(name)), make("p.hint.state"), pause, clear), make("ul.runs"));
	}

	/** @type {Fn.queueUpdateBlock} */
	function updateBlock(element, {name, queue, phase}) {
		const mine = store.state.runs.filter(({service}) => service === name);
		const open = mine.filter(run => isOpen(run.phase));
		const others = Math.max(0, (queue?.queued ?? 0) + (queue?.running.length ?? 0) - open.filter(({id}) => id !== null).length);
		const state = [phase === "down" && "no answer", queue?.paused ? "paused" : queue?.held, others > 0 && `${others} from elsewhere`].filter(Boolean);
		find(".state", element).textContent = state.join(" · ") || (open.length ? "" : "nothing waits");
		const pause = find("button.pause", element);
		const label = `${queue?.paused ? "Go on with" : "Pause"} ${precision(name)}`;
		if (pause.title !== label) {
			pause.title = label;
			pause.ariaLabel = label;
			pause.replaceChildren(icon(queue?.paused ? "run" : "pause"));
		}
		pause.disabled = find("button.clear", element).disabled = phase === "down";
		keep(find(".runs", element), mine, ({key}) => key, row, updateRow);
	}

	/** @param {Run} run */
	function row({key, body: {prompt}}) {
		/** @type {Fn.queueTool} */
		const tool = (label, icon, name, act) => button({label: `${label}: ${prompt}`, icon, kind: `bare ${name}`, act});
		return make(
			"li",
			make("img.run-preview", {alt: "", hidden: true}),
			make("p.run-prompt", prompt),
			make("p.run-words.hint"),
			make("progress", {max: 1, value: 0, "aria-label": "Progress"}),
			make(
				"div.run-buttons",
				tool("Try again", "redo", "again", () => runs.retry(key)),
				tool("Cancel", "close", "cancel", () => void runs.cancel(key)),
				tool("Dismiss", "close", "dismiss", () => runs.dismiss(key))
			)
		);
	}
}

/** @type {Fn.updateRow} */
function updateRow(element, run) {
	const open = isOpen(run.phase);
	element.dataset.phase = run.phase;
	find(".run-words", element).textContent = run.error || [runStatus(run), runStep(run), eta(run)].filter(Boolean).join(" · ");
	const bar = find("progress", element);
	bar.hidden = run.phase !== "running";
	showProgress(bar, run);
	const preview = find("img.run-preview", element);
	preview.hidden = !run.preview;
	if (run.preview) preview.src = run.preview;
	find(".cancel", element).hidden = !open;
	find(".again", element).hidden = find(".dismiss", element).hidden = open;
}
