/** The notice when a service cannot draw; the question for a key. */

import {SERVICE_NAMES} from "../config.js";
import {find} from "../dom.js";
import {precision} from "../format.js";
import {servicesOf} from "../services.js";

/** @type {Fn.mountNotice} */
export function mountNotice({store}, refused) {
	const bar = find("#notice");
	const [title, text, enter] = [find("#notice-title"), find("#notice-text"), find("#notice-key")];
	/** @type {ServiceName | null} */
	let locked = null;
	enter.onclick = () => store.set({keyAsked: locked});
	store.watch(state => [state.keyAsked, state.services, SERVICE_NAMES.map(name => isUsed(state, name)).join()], (keyAsked, _services, _used) => {
		const notice = keyAsked ? null : noticeOf(store.state, refused);
		bar.hidden = notice === null;
		bar.dataset.phase = notice?.phase ?? "";
		locked = notice?.phase === "locked" ? notice.service : null;
		enter.hidden = locked === null;
		// An alert is read out each time it is written: a number that goes up and down is no news.
		if (notice && wordsOf(`${title.textContent}${text.textContent}`) !== wordsOf(notice.title + notice.text))
			[title.textContent, text.textContent] = [notice.title, notice.text];
	});
}

/** @param {string} text */
const wordsOf = text => text.replace(/\d+/g, "");

/** Whether a Model node draws with it. @type {Fn.isUsed} */
function isUsed({document}, name) {
	return Object.values(document.graph.nodes).some(({kind, values}) => kind === "model" && values.service === name);
}

/** @type {Fn.noticeOf} */
function noticeOf(state, refused) {
	const services = servicesOf(state);
	const ready = services.find(({phase}) => phase === "ready");
	// One that was never there and that nothing asks for is no news.
	const first = services.find(({phase, name, wasUp}) => phase !== "ready" && phase !== "connecting" && (wasUp || isUsed(state, name)));
	if (first) return {...wordsFor(first, ready), phase: first.phase, service: first.name};
	if (!refused || !ready) return null;
	return {title: `The address ${refused} was not taken.`, text: "Only services on this machine are.", phase: "refused", service: null};
}

/** @type {Fn.wordsFor} */
function wordsFor({name, phase, reason, address}, other) {
	const title = `The ${precision(name)} service`;
	const instead = other ? ` ${precision(other.name)} still draws.` : "";
	if (phase === "locked") return {title: `${title} needs a key.`, text: "Nothing you typed is lost."};
	if (phase === "waiting") return {title: `${title} cannot draw now.`, text: `It says: ${reason}.${instead}`};
	const why = reason ? ` It said: ${reason}.` : "";
	const origin = address === location.origin ? "" : ` If it runs, FLUX_PAGE_ORIGINS must hold ${location.origin}.`;
	return {title: `${title} at ${address} does not answer.`, text: `This page goes on trying; nothing you typed is lost.${instead}${why}${origin}`};
}

/** @param {App} app */
export function mountKeyDialog({store, connections}) {
	const dialog = find("dialog#key-dialog");
	const field = find("input#key");
	const error = find("#key-error");
	find("#key-form").onsubmit = event => {
		event.preventDefault();
		const key = field.value.trim();
		const {keyAsked} = store.state;
		if (keyAsked && /^[\x21-\x7e]+$/.test(key)) {
			field.value = "";
			connections[keyAsked]?.useKey(key);
		} else store.set({keyError: key ? "A key has letters, digits and signs without spaces." : "Enter the key."});
	};
	dialog.onclose = () => dialog.open || store.set({keyAsked: null});
	store.watch(({keyAsked, keyError}) => [keyAsked, keyError], (keyAsked, keyError) => {
		error.textContent = keyError;
		error.hidden = !keyError;
		field.ariaInvalid = String(Boolean(keyError));
		if (!keyAsked) return dialog.open && dialog.close();
		find("#key-title").textContent = `The ${precision(keyAsked)} service needs a key`;
		find("#key-address").textContent = store.state.services[keyAsked]?.address ?? "";
		if (!dialog.open) {
			dialog.showModal();
			field.focus();
		}
	});
}
