/** Places for nodes: columns from left to right, in the direction of the wires. */

/** @import { Box, Graph } from "../../types/graph" */

import { inOrder, wiresInto, wiresOutOf } from "./graph.js";

const COLUMN_GAP = 72;
const ROW_GAP = 32;
const ROW_WIDTH = 1200;

/**
 * @param {Graph} graph
 * @param {(id: string) => {width: number, height: number}} sizeOf
 * @returns {Record<string, {x: number, y: number}>}
 */
export function arranged(graph, sizeOf) {
  const isWired = (/** @type {string} */ id) => Object.values(graph.wires).some(({ from, to }) => from.node === id || to.node === id);
  const columns = columnsOf(graph).map((ids) => ids.filter(isWired));
  /** @type {Record<string, {x: number, y: number}>} */
  const places = {};
  let [x, right, bottom] = [0, 0, 0];
  for (const ids of columns) {
    let y = 0;
    let width = 0;
    for (const id of ids) {
      const size = sizeOf(id);
      places[id] = { x, y };
      y += size.height + ROW_GAP;
      width = Math.max(width, size.width);
    }
    x += ids.length ? width + COLUMN_GAP : 0;
    bottom = Math.max(bottom, y);
    right = Math.max(right, x);
  }
  // What is not wired lies below, in rows as wide as the rest.
  const loose = inOrder(graph).filter(({ id }) => !isWired(id));
  let [place, highest] = [0, 0];
  for (const { id } of loose) {
    const size = sizeOf(id);
    if (place > 0 && place + size.width > Math.max(right, ROW_WIDTH)) {
      bottom += highest + ROW_GAP;
      [place, highest] = [0, 0];
    }
    places[id] = { x: place, y: bottom };
    place += size.width + ROW_GAP;
    highest = Math.max(highest, size.height);
  }
  return places;
}

/** Each node as far right as it must be, and its sources as near to it as they can. @param {Graph} graph @returns {string[][]} */
function columnsOf(graph) {
  /** @type {Map<string, number>} */
  const depth = new Map();
  const order = inOrder(graph);
  for (const { id } of order) {
    depth.set(id, Math.max(0, ...wiresInto(graph, id).map(({ from }) => (depth.get(from.node) ?? 0) + 1)));
  }
  for (const { id } of [...order].reverse()) {
    const next = wiresOutOf(graph, id).map(({ to }) => depth.get(to.node) ?? 0);
    if (next.length) {
      depth.set(id, Math.max(depth.get(id) ?? 0, Math.min(...next) - 1));
    }
  }
  /** @type {string[][]} */
  const columns = Array.from({ length: Math.max(0, ...depth.values()) + 1 }, () => []);
  for (const { id } of order) {
    columns[depth.get(id) ?? 0]?.push(id);
  }
  return columns;
}

/** The box around boxes, or null around none. @param {readonly Box[]} boxes @returns {Box | null} */
export function around(boxes) {
  if (!boxes.length) {
    return null;
  }
  const x = Math.min(...boxes.map((box) => box.x));
  const y = Math.min(...boxes.map((box) => box.y));
  const right = Math.max(...boxes.map((box) => box.x + box.width));
  const bottom = Math.max(...boxes.map((box) => box.y + box.height));
  return { x, y, width: right - x, height: bottom - y };
}
