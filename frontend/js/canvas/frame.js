/** The frame of a node: its title bar, its sockets, its body. */

/** @import { App } from "../../types/app" */
/** @import { GraphNode, Socket } from "../../types/graph" */

import { button, find, make } from "../dom.js";
import { collapse } from "../graph/commands.js";
import { wiresInto, wiresOutOf } from "../graph/graph.js";
import { NODE_TYPES, SOCKET_NAMES } from "../graph/table.js";
import { mountNode } from "../nodes/nodes.js";
import { socketsHeight, widthOf } from "./geometry.js";

/** What ends the view in an element. @type {WeakMap<HTMLElement, () => void>} */
const ends = new WeakMap();

/** @param {App} app @param {GraphNode} node */
export function frameOf(app, node) {
  const type = NODE_TYPES[node.kind];
  const element = make("article", { class: "node", "data-node": node.id, "data-kind": node.kind, tabindex: 0, "aria-label": `${type.title} node` });
  element.style.width = `${widthOf(node)}px`;
  const fold = button({
    label: "Collapse",
    icon: "fold",
    kind: "bare fold",
    act: () => app.editor.do(collapse(app.editor.graph, [node.id], !app.editor.graph.nodes[node.id]?.collapsed)),
  });
  const head = make("header", { class: "node-head" }, fold, make("h2", {}, type.title));
  if (node.kind === "sampler") {
    head.append(button({ label: "Run this sampler", icon: "run", kind: "bare", act: () => void app.runs.start([node.id]) }));
  }
  const sockets = make(
    "div",
    { class: "sockets" },
    make("div", { class: "inputs" }, ...type.inputs.map((socket) => socketButton(socket, "in"))),
    make("div", { class: "outputs" }, ...type.outputs.map((socket) => socketButton(socket, "out"))),
  );
  sockets.style.height = `${socketsHeight(node)}px`;
  const body = make("div", { class: "node-body" });
  element.append(head, sockets, body);
  ends.set(element, mountNode(app, node, body, "canvas"));
  return element;
}

/** @param {App} app @param {HTMLElement} element @param {GraphNode} node */
export function updateFrame(app, element, node) {
  element.style.transform = `translate(${node.x}px, ${node.y}px)`;
  element.dataset.collapsed = String(node.collapsed);
  const fold = find(".fold", HTMLButtonElement, element);
  fold.setAttribute("aria-expanded", String(!node.collapsed));
  const graph = app.editor.graph;
  for (const socket of element.querySelectorAll(".socket")) {
    const name = socket.getAttribute("data-socket") ?? "";
    const isInput = socket.getAttribute("data-side") === "in";
    const wires = isInput ? wiresInto(graph, node.id, name) : wiresOutOf(graph, node.id, name);
    socket.setAttribute("data-wired", String(wires.length > 0));
    const others = wires.map(({ from, to }) => graph.nodes[isInput ? from.node : to.node]?.kind).flatMap((kind) => (kind ? [NODE_TYPES[kind].title] : []));
    const words = `${isInput ? "Input" : "Output"} ${socket.textContent}: ${others.length ? `wired to ${others.join(", ")}` : "not wired"}`;
    socket.setAttribute("aria-label", words);
  }
}

/** @param {HTMLElement} element */
export function endFrame(element) {
  ends.get(element)?.();
  ends.delete(element);
}

/** @param {Socket} socket @param {"in" | "out"} side */
function socketButton({ name, type, label, needed }, side) {
  return make(
    "button",
    {
      type: "button",
      class: "socket",
      "data-socket": name,
      "data-side": side,
      "data-type": type,
      "data-needed": Boolean(needed),
      title: `${SOCKET_NAMES[type]}: drag to wire, click for a list`,
    },
    make("span", { class: "dot" }),
    make("span", { class: "socket-name" }, label),
  );
}
