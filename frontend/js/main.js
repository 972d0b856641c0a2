/** Puts the page together. */

import {serviceClient} from "./api.js";
import {mountCanvas} from "./canvas/canvas.js";
import {FIRST_SERVICE, SERVICE_NAMES, ownService, serviceAddresses} from "./config.js";
import {newConnection} from "./connection.js";
import {icon} from "./dom.js";
import {mountDrops} from "./drops.js";
import {newEditor} from "./editor.js";
import {newGallery} from "./gallery.js";
import {newDocument} from "./graph/history.js";
import {firstGraph} from "./graph/starters.js";
import {mountKeys} from "./keys.js";
import {whenRead} from "./lazy.js";
import {newLibrary} from "./library.js";
import {whenMounted} from "./nodes/nodes.js";
import {newOpener} from "./opener.js";
import {newRuns} from "./runs.js";
import {keepSession, readKeys, restore} from "./session.js";
import {INITIAL_CAMERA, Store, Values, initialService, initialState} from "./store.js";
import {mountForm} from "./views/form.js";
import {mountMessage} from "./views/message.js";
import {mountPanel} from "./views/panel.js";
import {mountKeyDialog, mountNotice} from "./views/service.js";
import {mountTopbar} from "./views/topbar.js";

/** There is no room for a canvas: a phone, upright or not. */
const NARROW = "(max-width: 700px), (max-height: 420px)";
const OWN_NAME = "flux own service";

async function main() {
	for (const svg of document.querySelectorAll("svg[data-icon]")) icon(svg.getAttribute("data-icon") ?? "", svg);
	const own = await ownName();
	const {addresses, refused} = serviceAddresses(location, own);
	const keys = readKeys();
	const saved = restore();
	const services = SERVICE_NAMES.flatMap(name => {
		const address = addresses[name];
		return address ? [[name, {...initialService(name, address), key: keys[address] ?? ""}]] : [];
	});
	const store = new Store({...initialState(), document: newDocument(firstGraph(own ?? FIRST_SERVICE)), ...saved, services: Object.fromEntries(services)});
	const narrow = matchMedia(NARROW);
	const makeRoom = () => narrow.matches && store.set({view: "form"});
	narrow.addEventListener("change", makeRoom);
	makeRoom();

	const connections = Object.fromEntries(
		Object.values(store.state.services).map(({name, address}) => [
			name,
			newConnection(name, serviceClient(address, () => store.state.services[name]?.key ?? ""), store)
		])
	);
	const camera = new Values({camera: INITIAL_CAMERA});
	const editor = newEditor(store);
	const gallery = newGallery(connections, store);
	/** Set when there is a canvas. */
	let fit = () => {};
	const fitSoon = () => void whenMounted(editor.graph).then(() => requestAnimationFrame(() => requestAnimationFrame(fit)));
	const library = newLibrary(connections, store, editor, fitSoon);
	const runs = newRuns(connections, store, service => void gallery.refresh(service));
	const opener = newOpener(store, editor, library, fitSoon);
	const app = {store, camera, connections, editor, gallery, library, opener, runs};

	const canvas = mountCanvas(app);
	fit = canvas.fit;
	const openHelp = () => whenRead(store, import("./views/help.js"), ({showHelp}) => showHelp());
	mountForm(app);
	mountTopbar(app, canvas, openHelp);
	mountPanel(app, fitSoon, {
		gallery: () => import("./views/gallery.js").then(part => part.mountGallery),
		queue: () => import("./views/queue.js").then(part => part.mountQueue),
		loras: () => import("./views/loras.js").then(part => part.mountLoras),
		machine: () => import("./views/machine.js").then(part => part.mountMachine),
		workflows: () => import("./views/workflows.js").then(part => part.mountWorkflows)
	});
	const unwatch = store.watch(({viewed}) => [viewed], viewed => {
		if (!viewed) return;
		unwatch(); // it looks after itself from now on
		whenRead(store, import("./views/viewer.js"), ({mountViewer}) => mountViewer(app));
	});
	store.watch(
		({compared}) => [compared],
		compared => compared && whenRead(store, import("./views/comparison.js"), ({showComparison}) => showComparison(app, compared))
	);
	mountNotice(app, refused);
	mountKeyDialog(app);
	mountMessage(store);
	mountKeys(app, canvas, openHelp);
	mountDrops(app, canvas);
	store.watch(({view}) => [view], view => view === "canvas" && fitSoon());
	fitWhenKnown(store, camera, fitSoon);
	const prompt = document.querySelector("[data-role=prompt]");
	if (prompt instanceof HTMLElement) prompt.focus({preventScroll: true});

	keepSession(store);
	gallery.follow();
	library.follow();
	runs.follow();
	for (const connection of Object.values(connections)) void connection.run();
}

/** @type {Fn.fitWhenKnown} */
function fitWhenKnown(store, camera, fitSoon) {
	let isMoved = false;
	for (const name of ["pointerdown", "wheel", "keydown"]) addEventListener(name, () => (isMoved = true), {once: true, capture: true});
	store.watch(({services}) => [Object.values(services).filter(({phase}) => phase === "ready").length], ready => ready && !isMoved && fitSoon());
}

/** @type {Fn.ownName} */
async function ownName() {
	const origin = ownService(location);
	if (origin === null) return null;
	try {
		const {service} = await serviceClient(origin, () => "").live();
		// A fleet is the one service of its page, in the first one's place.
		const name = SERVICE_NAMES.find(each => service.includes(each)) ?? (service.includes("fleet") ? FIRST_SERVICE : null);
		sessionStorage.setItem(OWN_NAME, name ?? "");
		return name;
	} catch {
		return SERVICE_NAMES.find(each => each === sessionStorage.getItem(OWN_NAME)) ?? FIRST_SERVICE;
	}
}

void main();
