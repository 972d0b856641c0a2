/** Where things are on the canvas, px at scale 1. Sockets stand at fixed places, so that wires need no measuring. */

/** @import { Box, End, Graph, GraphNode } from "../../types/graph" */
/** @import { Camera } from "../../types/state" */

import { NODE_TYPES } from "../graph/table.js";

export const HEAD = 38;
export const ROW = 26;
export const SOCKETS_TOP = HEAD + 8;
const LEAST_SCALE = 0.15;
const MOST_SCALE = 2.5;

/** @param {GraphNode} node */
export function widthOf({ kind }) {
  return NODE_TYPES[kind].width;
}

/** How high the rows of sockets are. @param {GraphNode} node */
export function socketsHeight({ kind }) {
  const { inputs, outputs } = NODE_TYPES[kind];
  const rows = Math.max(inputs.length, outputs.length);
  return rows ? rows * ROW + 12 : 0;
}

/** The middle of a socket. @param {GraphNode} node @param {string} socket @param {"in" | "out"} side */
export function anchorOf(node, socket, side) {
  const type = NODE_TYPES[node.kind];
  const sockets = side === "in" ? type.inputs : type.outputs;
  const row = Math.max(0, sockets.findIndex(({ name }) => name === socket));
  return {
    x: node.x + (side === "in" ? 0 : type.width),
    y: node.y + (node.collapsed ? HEAD / 2 : SOCKETS_TOP + row * ROW + ROW / 2),
  };
}

/** @param {Graph} graph @param {End} end @param {"in" | "out"} side */
export function anchorAt(graph, end, side) {
  const node = graph.nodes[end.node];
  return node ? anchorOf(node, end.socket, side) : { x: 0, y: 0 };
}

/** @param {{x: number, y: number}} from @param {{x: number, y: number}} to the path of a wire */
export function pathBetween(from, to) {
  const reach = Math.max(40, Math.min(180, Math.abs(to.x - from.x) / 2 + Math.abs(to.y - from.y) / 6));
  return `M${from.x} ${from.y}C${from.x + reach} ${from.y} ${to.x - reach} ${to.y} ${to.x} ${to.y}`;
}

/** @param {Camera} camera @param {{x: number, y: number}} point of the canvas element @returns {{x: number, y: number}} */
export function toWorld({ x, y, scale }, point) {
  return { x: (point.x - x) / scale, y: (point.y - y) / scale };
}

/** The place under the pointer stays under it. @param {Camera} camera @param {{x: number, y: number}} point @param {number} factor @returns {Camera} */
export function zoomed(camera, point, factor) {
  const scale = Math.min(MOST_SCALE, Math.max(LEAST_SCALE, camera.scale * factor));
  const ratio = scale / camera.scale;
  return { scale, x: point.x - (point.x - camera.x) * ratio, y: point.y - (point.y - camera.y) * ratio };
}

/** All of a box in view, not larger than at scale 1. @param {Box} box @param {{width: number, height: number}} room @param {number} [margin] @returns {Camera} */
export function fitted(box, room, margin = 56) {
  const across = (room.width - 2 * margin) / Math.max(1, box.width);
  const down = (room.height - 2 * margin) / Math.max(1, box.height);
  const scale = Math.min(1, Math.max(LEAST_SCALE, Math.min(across, down)));
  return {
    scale,
    x: Math.round((room.width - box.width * scale) / 2 - box.x * scale),
    y: Math.round((room.height - box.height * scale) / 2 - box.y * scale),
  };
}

/** @param {Box} a @param {Box} b */
export function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}
