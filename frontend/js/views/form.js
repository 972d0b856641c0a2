/** The same graph as a plain form: what goes in on one side, what comes out on the other. */

import {button, find, focusFirstField, keep, make} from "../dom.js";
import * as commands from "../graph/commands.js";
import {freeIds, newNode, nodesOf} from "../graph/graph.js";
import {mainSampler} from "../graph/plan.js";
import {NODE_TYPES} from "../graph/table.js";
import {modelOfSampler, priceOf} from "../models.js";
import {mountNode} from "../nodes/nodes.js";

/** What belongs where, in this order. @type {Readonly<Record<string, readonly NodeKind[]>>} */
const PLACES = {
	"#form-prompts": ["prompt", "negative"],
	"#form-parts": ["lora", "image-input", "mask", "references"],
	"#form-settings": ["model", "sampler"],
	"#form-results": ["image", "compare", "note"]
};
/** What every graph has. */
const FIXED = ["prompt", "model", "sampler", "image"];
/** What can be added to the sampler here, and the sockets that it is wired by. @type {readonly [NodeKind, string, string][]} */
const ADDABLE = [
	["lora", "lora", "loras"],
	["negative", "text", "negative"],
	["image-input", "image", "image"],
	["mask", "mask", "mask"],
	["references", "references", "references"]
];

/** @param {App} app */
export function mountForm(app) {
	const {store, editor} = app;
	const root = find("#form");
	/** @type {WeakMap<Element, () => void>} */
	const ends = new WeakMap();
	find("#form-add").append(
		...ADDABLE.map(([kind, output, input]) => {
			const {title} = NODE_TYPES[kind];
			return button({label: `Add ${title}`, icon: "plus", words: title, kind: "chip", act: () => addWired(kind, output, input)});
		})
	);
	find("#form-run").onclick = () => app.runs.start() && bringIntoView(find("#form-results"));

	store.watch(
		({document, view}) => [
			view,
			nodesOf(document.graph)
				.map(({id, kind}) => `${id} ${kind}`)
				.join()
		],
		(view, _structure) => {
			root.hidden = view !== "form";
			const nodes = view === "form" ? nodesOf(editor.graph) : [];
			for (const [place, kinds] of Object.entries(PLACES)) {
				const parent = find(place);
				const mine = kinds.flatMap(kind => nodes.filter(node => node.kind === kind));
				const stay = new Set(mine.map(keyOf));
				for (const element of parent.children) {
					if (!stay.has(element.getAttribute("data-key") ?? "")) ends.get(element)?.();
				}
				keep(parent, mine, keyOf, card);
			}
			find("#form-empty").hidden = nodes.some(({kind}) => kind === "sampler");
		}
	);
	store.watch(({document, faults, services}) => [document.graph, faults, services], (graph, faults, _services) => {
		const settings = nodesOf(graph).filter(({kind}) => kind === "model" || kind === "sampler");
		find("#form-summary").textContent = summaryOf(store.state);
		find("details#form-more").open ||= settings.some(({id}) => Object.values(faults[id] ?? {}).some(Boolean));
	});

	/** @param {GraphNode} node */
	function card(node) {
		const {title} = NODE_TYPES[node.kind];
		const body = make("div.node-body");
		const head = make("header.card-head", make("h2", title));
		const remove = () => editor.do(commands.removeNodes(editor.graph, [node.id]));
		if (!FIXED.includes(node.kind)) head.append(button({label: `Remove this ${title}`, icon: "close", kind: "bare", act: remove}));
		const element = make("section.card", {"data-node": node.id, "data-kind": node.kind, "aria-label": title}, head, body);
		ends.set(element, mountNode(app, node, body, "form"));
		return element;
	}

	/** @type {Fn.addWired} */
	function addWired(kind, output, input) {
		const {graph} = editor;
		const sampler = mainSampler(graph);
		const targets = kind === "lora" ? nodesOf(graph).filter(node => node.kind === "model") : sampler ? [sampler] : [];
		const {x = 0, y = 0} = targets[0] ?? {};
		const rows = nodesOf(graph).filter(node => node.kind === kind).length;
		const node = newNode(freeIds(graph, "nodes")(), kind, {x: x - 360, y: y + 480 + rows * 240});
		const ids = targets.map(({id}) => id);
		const wires = kind === "image-input" ? commands.feeding(graph, node.id, ids) : ids.map(id => commands.connecting(`${node.id}.${output}`, `${id}.${input}`));
		// A mask is painted on the picture that is drawn from.
		const picture = kind === "mask" && nodesOf(graph).find(each => each.kind === "image-input");
		if (picture) wires.push(commands.connecting(`${picture.id}.image`, `${node.id}.image`));
		editor.do(commands.together(`add ${NODE_TYPES[kind].title}`, graph, [() => commands.addNode(node), ...wires]));
		const added = root.querySelector(`[data-node="${node.id}"]`);
		focusFirstField(added);
		added?.scrollIntoView({block: "nearest"});
	}
}

/** @param {GraphNode} node */
const keyOf = ({id, kind}) => `${id} ${kind}`;

/** @param {State} state */
function summaryOf(state) {
	const sampler = mainSampler(state.document.graph);
	if (!sampler) return "";
	const {width, height, num_inference_steps: steps, seed_mode: mode, seed, num_images: count} = sampler.values;
	return [
		width !== null || height !== null ? `${width ?? "…"} × ${height ?? "…"}` : "",
		steps === null ? "" : `${steps} steps`,
		mode === "fixed" ? `seed ${seed}` : "random seed",
		count === 1 ? "" : `${count} pictures`,
		priceOf(modelOfSampler(state, sampler.id))
	]
		.filter(Boolean)
		.join(" · ");
}

/** On a small screen the picture is below the form. @param {HTMLElement} results */
function bringIntoView(results) {
	if (results.getBoundingClientRect().bottom > innerHeight + 40 && innerWidth < 900) {
		const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
		results.scrollIntoView({behavior: isCalm ? "instant" : "smooth", block: "start"});
	}
}
