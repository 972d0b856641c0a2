/** Short messages, seen for a moment and read out; and the tab's title. */

import {find} from "../dom.js";
import {runStage} from "../format.js";
import {currentRun} from "../runs.js";

/** Long ones stay longer. */
const SHOWN_MS = 3500;
const PER_CHARACTER_MS = 40;
const NAME = "FLUX";

/** @param {Store} store */
export function mountMessage(store) {
	const line = find("#message");
	const bottom = find(".bottom");
	// A dialog lies over everything that is not in it.
	const lift = () => {
		const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
		if (bottom.parentNode !== place) place.append(bottom);
	};
	document.addEventListener("close", lift, true);
	/** @type {Timer} */
	let timer;
	store.watch(({message}) => [message], message => {
		clearTimeout(timer);
		lift();
		line.textContent = message?.text ?? "";
		timer = setTimeout(() => (line.textContent = ""), SHOWN_MS + PER_CHARACTER_MS * line.textContent.length);
	});
	store.watch(({announcement}) => [announcement], text => void (find("#announcement").textContent = text));
	// Stages are read out, single steps are not.
	store.watch(
		({runs}) => {
			const run = currentRun(runs);
			return [run?.phase === "running" ? runStage(run) : ""];
		},
		stage => stage && store.set({announcement: `${stage}.`})
	);
	store.watch(
		({runs}) => {
			const run = currentRun(runs);
			const {step = 0, steps = 0} = (run?.phase === "running" && run.progress) || {};
			return [run ? `${steps ? `${Math.round((100 * step) / steps)} %` : "Waiting"} · ${NAME}` : NAME];
		},
		title => void (document.title = title)
	);
}
