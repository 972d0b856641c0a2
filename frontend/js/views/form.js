/** The same graph as a plain form: what goes in on one side, what comes out on the other. */

/** @import { App } from "../../types/app" */
/** @import { Graph, GraphNode, NodeKind } from "../../types/graph" */

import { button, find, focusFirstField, keep, make } from "../dom.js";
import * as commands from "../graph/commands.js";
import { freeIds, newNode, nodesOf } from "../graph/graph.js";
import { mainSampler } from "../graph/plan.js";
import { NODE_TYPES } from "../graph/table.js";
import { mountNode } from "../nodes/nodes.js";

/** What belongs where, in this order. @type {readonly {place: string, kinds: readonly NodeKind[]}[]} */
const PLACES = [
  { place: "#form-prompts", kinds: ["prompt", "negative"] },
  { place: "#form-parts", kinds: ["lora", "image-input", "mask", "references"] },
  { place: "#form-settings", kinds: ["model", "sampler"] },
  { place: "#form-results", kinds: ["image", "compare", "note"] },
];
/** What can be added to the sampler here, and the sockets that it is wired by. @type {readonly {kind: NodeKind, output: string, input: string}[]} */
const ADDABLE = [
  { kind: "lora", output: "lora", input: "loras" },
  { kind: "negative", output: "text", input: "negative" },
  { kind: "image-input", output: "image", input: "image" },
  { kind: "references", output: "references", input: "references" },
];

/** @param {App} app */
export function mountForm(app) {
  const { store, editor } = app;
  const root = find("#form", HTMLElement);
  const add = find("#form-add", HTMLElement);
  /** @type {WeakMap<Element, () => void>} */
  const ends = new WeakMap();
  for (const { kind, output, input } of ADDABLE) {
    const { title } = NODE_TYPES[kind];
    add.append(button({ label: `Add ${title}`, icon: "plus", words: title, kind: "chip", act: () => addWired(kind, output, input) }));
  }
  find("#form-run", HTMLButtonElement).addEventListener("click", () => {
    if (app.runs.start()) {
      bringIntoView(find("#form-results", HTMLElement));
    }
  });

  store.watch(
    ({ document, view }) => [view, nodesOf(document.graph).map(({ id, kind }) => `${id} ${kind}`).join()],
    (view, _structure) => {
      root.hidden = view !== "form";
      const nodes = view === "form" ? nodesOf(editor.graph) : [];
      for (const { place, kinds } of PLACES) {
        const parent = find(place, HTMLElement);
        const mine = kinds.flatMap((kind) => nodes.filter((node) => node.kind === kind));
        const stay = new Set(mine.map(keyOf));
        for (const element of parent.children) {
          if (!stay.has(element.getAttribute("data-key") ?? "")) {
            ends.get(element)?.();
          }
        }
        keep(parent, mine, keyOf, card);
      }
      find("#form-empty", HTMLElement).hidden = nodes.some(({ kind }) => kind === "sampler");
    },
  );
  store.watch(
    ({ document, faults }) => [document.graph, faults],
    (graph, faults) => {
      find("#form-summary", HTMLElement).textContent = summaryOf(graph);
      const details = find("#form-more", HTMLDetailsElement);
      const isWrong = nodesOf(graph).some(({ id, kind }) => (kind === "model" || kind === "sampler") && Object.values(faults[id] ?? {}).some(Boolean));
      details.open ||= isWrong;
    },
  );

  /** @param {GraphNode} node */
  function card(node) {
    const { title } = NODE_TYPES[node.kind];
    const body = make("div", { class: "node-body" });
    const head = make("header", { class: "card-head" }, make("h2", {}, title));
    if (!["prompt", "model", "sampler", "image"].includes(node.kind)) {
      head.append(button({ label: `Remove this ${title}`, icon: "close", kind: "bare", act: () => editor.do(commands.removeNodes(editor.graph, [node.id])) }));
    }
    const element = make("section", { class: "card", "data-node": node.id, "data-kind": node.kind, "aria-label": title }, head, body);
    ends.set(element, mountNode(app, node, body, "form"));
    return element;
  }

  /** @param {NodeKind} kind @param {string} output @param {string} input */
  function addWired(kind, output, input) {
    const sampler = mainSampler(editor.graph);
    const models = nodesOf(editor.graph).filter((node) => node.kind === "model");
    const targets = kind === "lora" ? models : sampler ? [sampler] : [];
    const rows = nodesOf(editor.graph).filter((node) => node.kind === kind).length;
    const node = newNode(freeIds(editor.graph, "nodes")(), kind, { x: (targets[0]?.x ?? 0) - 360, y: (targets[0]?.y ?? 0) + 480 + rows * 240 });
    editor.do(
      commands.together(`add ${NODE_TYPES[kind].title}`, editor.graph, [
        () => commands.addNode(node),
        ...targets.map(({ id }) => (/** @type {Graph} */ graph) => commands.connect(graph, { node: node.id, socket: output }, { node: id, socket: input })),
      ]),
    );
    const card = root.querySelector(`[data-node="${node.id}"]`);
    focusFirstField(card);
    card?.scrollIntoView({ block: "nearest" });
  }
}

/** @param {GraphNode} node */
function keyOf({ id, kind }) {
  return `${id} ${kind}`;
}

/** @param {Graph} graph */
function summaryOf(graph) {
  const sampler = mainSampler(graph);
  if (!sampler) {
    return "";
  }
  const { width, height, num_inference_steps: steps, seed_mode: mode, seed, num_images: count } = sampler.values;
  return [
    width !== null || height !== null ? `${width ?? "…"} × ${height ?? "…"}` : "",
    steps === null ? "" : `${steps} steps`,
    mode === "fixed" ? `seed ${seed}` : "random seed",
    count === 1 ? "" : `${count} pictures`,
  ].filter(Boolean).join(" · ");
}

/** On a small screen the picture is below the form. @param {HTMLElement} results */
function bringIntoView(results) {
  if (results.getBoundingClientRect().bottom > innerHeight + 40 && innerWidth < 900) {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    results.scrollIntoView({ behavior: isCalm ? "instant" : "smooth", block: "start" });
  }
}
