/** What was done, and can be undone and done again. */

/** @import { Command, Document, Graph } from "../../types/graph" */

import { execute, joined, revert } from "./commands.js";

/** Enough for an afternoon; each entry holds only what it changed. */
const MAX_DONE = 2000;

/** @param {Graph} graph @returns {Document} */
export function newDocument(graph) {
  return { graph, history: { done: [], undone: [] } };
}

/**
 * @param {Document} document
 * @param {Command | null} command
 * @param {boolean} [goesOn] whether it may be joined with the last one, when both are of one series
 * @returns {Document}
 */
export function perform({ graph, history }, command, goesOn = false) {
  if (!command) {
    return { graph, history };
  }
  const last = history.done.at(-1);
  const isSeries = goesOn && command.series !== "" && last?.series === command.series && !history.undone.length;
  const done = isSeries && last ? [...history.done.slice(0, -1), joined(last, command)] : [...history.done, command];
  return { graph: execute(graph, command), history: { done: done.slice(-MAX_DONE), undone: [] } };
}

/** @param {Document} document @returns {Document} */
export function undo({ graph, history: { done, undone } }) {
  const last = done.at(-1);
  return last
    ? { graph: revert(graph, last), history: { done: done.slice(0, -1), undone: [...undone, last] } }
    : { graph, history: { done, undone } };
}

/** @param {Document} document @returns {Document} */
export function redo({ graph, history: { done, undone } }) {
  const next = undone.at(-1);
  return next
    ? { graph: execute(graph, next), history: { done: [...done, next], undone: undone.slice(0, -1) } }
    : { graph, history: { done, undone } };
}
