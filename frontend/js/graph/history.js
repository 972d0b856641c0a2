/** What was done, and can be undone and done again. */

import {execute, joined, revert} from "./commands.js";

/** Enough for an afternoon; each entry holds only what it changed. */
const MAX_DONE = 2000;

/** @param {Graph} graph @returns {Doc} */
export function newDocument(graph) {
	return {graph, history: {done: [], undone: []}};
}

/** @type {HistoryFn.perform} */
export function perform(document, command, goesOn = false) {
	if (!command) return document;
	const {done, undone} = document.history;
	const last = done.at(-1);
	const isSeries = goesOn && command.series !== "" && last?.series === command.series && !undone.length;
	const all = isSeries && last ? [...done.slice(0, -1), joined(last, command)] : [...done, command];
	return {graph: execute(document.graph, command), history: {done: all.slice(-MAX_DONE), undone: []}};
}

/** @param {Doc} document @returns {Doc} */
export function undo(document) {
	const {done, undone} = document.history;
	const last = done.at(-1);
	return last ? {graph: revert(document.graph, last), history: {done: done.slice(0, -1), undone: [...undone, last]}} : document;
}

/** @param {Doc} document @returns {Doc} */
export function redo(document) {
	const {done, undone} = document.history;
	const next = undone.at(-1);
	return next ? {graph: execute(document.graph, next), history: {done: [...done, next], undone: undone.slice(0, -1)}} : document;
}
