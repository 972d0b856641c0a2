/** What was done, and can be undone and done again. */

import {execute, joined, revert} from "./commands.js";

/** Enough for an afternoon; each entry holds only what it changed. */
const MAX_DONE = 2000;

/** @type {Fn.newDocument} */
export function newDocument(graph) {
	return {graph, history: {done: [], undone: []}};
}

/** @type {Fn.perform} */
export function perform(document, command, goesOn = false) {
	if (!command) return document;
	const {done, undone} = document.history;
	const last = done.at(-1);
	const isSeries = goesOn && command.series !== "" && last?.series === command.series && !undone.length;
	const all = isSeries && last ? [...done.slice(0, -1), joined(last, command)] : [...done, command];
	return {graph: execute(document.graph, command), history: {done: all.slice(-MAX_DONE), undone: []}};
}

/** @type {Fn.step} */
export function undo({graph, history: {done, undone}}) {
	const last = done.at(-1);
	return {graph: last ? revert(graph, last) : graph, history: {done: done.slice(0, -1), undone: last ? [...undone, last] : undone}};
}

/** @type {Fn.step} */
export function redo({graph, history: {done, undone}}) {
	const next = undone.at(-1);
	return {graph: next ? execute(graph, next) : graph, history: {done: next ? [...done, next] : done, undone: undone.slice(0, -1)}};
}
