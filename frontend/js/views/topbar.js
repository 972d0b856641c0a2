/** The bar at the top: the workflow, the view, the button that runs, the services, the panels. */

import {SERVICE_NAMES} from "../config.js";
import {button, find, icon, keep, make} from "../dom.js";
import {precision} from "../format.js";
import * as commands from "../graph/commands.js";
import {mainSampler} from "../graph/plan.js";
import {whenRead} from "../lazy.js";
import {newSeed} from "../random.js";
import {isOpen} from "../runs.js";
import {servicesOf} from "../services.js";

/** @type {Readonly<Record<Panel, string>>} */
export const PANELS = {gallery: "Gallery", loras: "LoRAs", queue: "Queue", machine: "Machine", workflows: "Workflows"};
export const THEME = "flux theme";
/** @type {State["view"][]} */
const VIEWS = ["canvas", "form"];

/** @type {Fn.mountTopbar} */
export function mountTopbar(app, canvas, openHelp) {
	const {store, runs} = app;
	const stop = find("#stop");
	const open = (/** @type {Panel} */ panel) => () => togglePanel(app, panel);
	find("#run").onclick = () => void runs.start();
	stop.onclick = () => runs.cancelAll();
	find("#compare").onclick = () => whenRead(store, import("../graph/compared.js"), ({withTwin}) => compare(app, canvas, withTwin));
	find("#workflow").onclick = open("workflows");
	for (const view of VIEWS) find(`input[name=view][value=${view}]`).onchange = () => store.set({view});
	store.watch(({view}) => [view], view => {
		find(`input[name=view][value=${view}]`).checked = true;
		document.body.dataset.view = view;
	});
	store.watch(({runs: all}) => [all.filter(({phase}) => isOpen(phase)).length], count => {
		stop.hidden = count === 0;
		find("#run-count").textContent = count ? String(count) : "";
	});
	store.watch(({workflow}) => [workflow], name => void (find("#workflow-name").textContent = name || "Untitled"));

	const tabs = /** @type {[Panel, string][]} */ (Object.entries(PANELS)).map(([panel, words]) => {
		return make("button.tab", {"data-panel": panel, "aria-label": words, title: words, onclick: open(panel)}, icon(panel), make("span.tab-words", words));
	});
	find("#panels").append(...tabs);
	store.watch(({panel}) => [panel], panel => {
		document.body.dataset.panel = panel ?? "";
		for (const tab of tabs) tab.ariaPressed = String(tab.dataset.panel === panel);
	});
	const pills = find("#services");
	store.watch(state => [state.services], () => keep(pills, servicesOf(store.state), ({name}) => name, pill, updatePill));
	find("#corner").append(
		button({label: "Dark or light", icon: "theme", kind: "bare", act: () => switchTheme(store)}),
		button({label: "Help and keys", icon: "help", kind: "bare", act: openHelp})
	);

	/** @type {Fn.pill} */
	function pill({name}) {
		return make("button.pill", {"data-service": name, onclick: open("machine")}, make("span.dot"), precision(name));
	}
}

/** @type {Fn.updatePill} */
function updatePill(element, service) {
	element.dataset.phase = service.phase;
	element.title = `${precision(service.name)}: ${describe(service)}`;
	element.ariaLabel = element.title;
}

/** @param {Store} store */
function switchTheme(store) {
	const {dataset} = document.documentElement;
	const isLight = (dataset.theme ?? (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark")) === "light";
	const theme = isLight ? "dark" : "light";
	dataset.theme = theme;
	store.set({announcement: theme});
	try {
		localStorage.setItem(THEME, theme);
	} catch {
		// Storage is off: it holds until the page is closed.
	}
}

/** @type {Fn.togglePanel} */
export function togglePanel({store}, panel) {
	store.set({panel: store.state.panel === panel ? null : panel});
}

/** @type {Fn.compare} */
function compare({store, editor, runs, connections}, canvas, withTwin) {
	const missing = SERVICE_NAMES.find(name => !connections[name]);
	if (missing) return store.say(`This page knows no ${missing.toUpperCase()} service to compare with.`);
	const sampler = mainSampler(editor.graph, store.state.selection[0] ?? null);
	const last = sampler && store.state.shown[sampler.id];
	const twin = sampler && withTwin(editor.graph, sampler.id, last?.job.result?.images[last.index]?.seed ?? newSeed(), canvas.boxOf);
	if (!twin) return store.say("There is no Sampler with a Model to compare.");
	editor.do(commands.replaceAll(editor.graph, twin.graph, "compare the services"));
	editor.select([]);
	requestAnimationFrame(canvas.fit);
	runs.start(twin.samplers);
}

/** @type {Fn.describe} */
export function describe({phase, reason, info, address}) {
	const names = info?.devices.map(({name}) => name) ?? [];
	const machine = names.length > 1 ? `${names.length} × ${names[0]}` : names[0];
	return {
		connecting: "connecting",
		ready: machine ? `ready on ${machine}` : "ready",
		waiting: `cannot draw now: ${reason}`,
		down: `no answer at ${address}`,
		locked: "needs a key"
	}[phase];
}
