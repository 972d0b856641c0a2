/** What the menus of the canvas offer: nodes to add, ends to wire, things to do. */

/** @import { App } from "../../types/app" */
/** @import { End, NodeKind, Socket, SocketType } from "../../types/graph" */
/** @import { MenuItem } from "./menu.js" */

import { focusFirstField } from "../dom.js";
import * as commands from "../graph/commands.js";
import { nodesOf, whyNoWire, wiresInto, wiresOutOf } from "../graph/graph.js";
import { NODE_KINDS, NODE_TYPES } from "../graph/table.js";
import { openMenu } from "./menu.js";

/**
 * Search for a node to add; with `end` only those that fit, and wired at once.
 * @param {App} app
 * @param {{at: {x: number, y: number}, place: {x: number, y: number}, end?: {end: End, side: "in" | "out", type: SocketType} | null, onClose?: () => void}} options
 */
export function openSearch(app, { at, place, end = null, onClose }) {
  /** @param {NodeKind} kind @returns {Socket | undefined} */
  const fitting = (kind) => (end?.side === "out" ? NODE_TYPES[kind].inputs : NODE_TYPES[kind].outputs).find(({ type }) => type === end?.type);
  const kinds = NODE_KINDS.filter((kind) => !end || fitting(kind));
  openMenu({
    at,
    label: "Add a node",
    search: true,
    onClose,
    items: kinds.map((kind) => ({
      words: NODE_TYPES[kind].title,
      hint: NODE_TYPES[kind].about,
      type: (NODE_TYPES[kind].outputs[0] ?? NODE_TYPES[kind].inputs[0])?.type,
      act: () => {
        const socket = fitting(kind);
        const x = end?.side === "in" ? place.x - NODE_TYPES[kind].width : place.x;
        const node = app.editor.add(kind, { x, y: place.y - (end ? 58 : 0) });
        if (end && socket) {
          const own = { node: node.id, socket: socket.name };
          app.editor.do(end.side === "out" ? commands.connect(app.editor.graph, end.end, own) : commands.connect(app.editor.graph, own, end.end));
        }
        focusFirstField(document.querySelector(`.node[data-node="${node.id}"]`));
      },
    })),
  });
}

/** Everything a socket can be wired to, and its wires to cut. @param {App} app @param {End} end @param {"in" | "out"} side @param {SocketType} type @param {{x: number, y: number}} at @param {{x: number, y: number}} place */
export function openConnect(app, end, side, type, at, place) {
  const graph = app.editor.graph;
  const wires = side === "in" ? wiresInto(graph, end.node, end.socket) : wiresOutOf(graph, end.node, end.socket);
  /** @type {MenuItem[]} */
  const items = wires.map((wire) => {
    const other = side === "in" ? wire.from : wire.to;
    return { words: `Cut: ${nameOf(other)}`, icon: "close", act: () => app.editor.do(commands.disconnect(app.editor.graph, [wire.id])) };
  });
  for (const node of nodesOf(graph)) {
    for (const socket of side === "out" ? NODE_TYPES[node.kind].inputs : NODE_TYPES[node.kind].outputs) {
      const other = { node: node.id, socket: socket.name };
      const [from, to] = side === "out" ? [end, other] : [other, end];
      const isThere = wires.some((wire) => wire.from.node === from.node && wire.to.node === to.node && wire.to.socket === to.socket);
      if (!isThere && whyNoWire(graph, from, to) === "") {
        items.push({ words: `Wire to ${nameOf(other)}`, type, act: () => app.editor.do(commands.connect(app.editor.graph, from, to)) });
      }
    }
  }
  items.push({ words: "Add a node …", icon: "plus", act: () => openSearch(app, { at, place, end: { end, side, type } }) });
  openMenu({ at, label: "Wire", items });

  /** @param {End} other */
  function nameOf(other) {
    const node = graph.nodes[other.node];
    const label = node && [...NODE_TYPES[node.kind].inputs, ...NODE_TYPES[node.kind].outputs].find(({ name }) => name === other.socket)?.label;
    return node ? `${NODE_TYPES[node.kind].title} ${node.id.slice(1)}, ${label}` : "";
  }
}

/** @param {App} app @param {{at: {x: number, y: number}, boxOf: (id: string) => import("../../types/graph").Box}} options */
export function openNodeMenu(app, { at, boxOf }) {
  const { editor, store, runs } = app;
  const ids = store.state.selection;
  const nodes = ids.flatMap((id) => editor.graph.nodes[id] ?? []);
  const samplers = nodes.filter(({ kind }) => kind === "sampler");
  const isCollapsed = nodes.every(({ collapsed }) => collapsed);
  const alone = ids.length < 2;
  openMenu({
    at,
    label: "Node",
    items: [
      ...(samplers.length ? [{ words: "Run", icon: "run", act: () => void runs.start(samplers.map(({ id }) => id)) }] : []),
      { words: "Duplicate", keys: "Ctrl D", act: () => editor.duplicate() },
      { words: "Copy", keys: "Ctrl C", act: () => void editor.copy() },
      { words: isCollapsed ? "Open" : "Collapse", keys: "C", act: () => editor.do(commands.collapse(editor.graph, ids, !isCollapsed)) },
      ...(alone
        ? []
        : /** @type {const} */ (["left", "top", "row", "column"]).map((how) => ({
            words: { left: "Align left edges", top: "Align top edges", row: "Put into a row", column: "Put into a column" }[how],
            act: () => editor.do(commands.align(editor.graph, ids, how, boxOf)),
          }))),
      { words: "Delete", keys: "Del", icon: "delete", act: () => editor.deleteSelected() },
    ],
  });
}
