/** What can be done with one picture: the same on its node and in the viewer. */

import {FIRST_SERVICE} from "../config.js";
import {button, icon, make} from "../dom.js";
import {nodesOf, wiresInto} from "../graph/graph.js";
import {mainSampler} from "../graph/plan.js";
import * as commands from "../graph/commands.js";
import {download} from "../pictures.js";

/** @type {Fn.actionsFor} */
export function actionsFor(app, choose, {compact = false, onUsed = () => {}} = {}) {
	const {store, editor, opener} = app;
	const link = make("a.quiet", {"aria-label": "Download", title: "Download"}, icon("download"), compact ? "" : "Download");
	link.onclick = event => {
		const connection = app.connections[choose()?.service ?? FIRST_SERVICE];
		if (connection) download(event, connection).catch(() => store.say("Not downloaded: the service did not send it."));
	};
	const row = make(
		compact ? "div.actions.compact" : "div.actions",
		link,
		action("Use this seed", "seed", ({seed}) => {
			const sampler = mainSampler(editor.graph);
			if (!sampler) return;
			editor.setValues(sampler.id, {seed_mode: "fixed", seed});
			store.say(`Seed ${seed} is set.`);
			onUsed();
		}),
		action("Use these settings", "settings", ({request, seed, service}) => {
			opener.openRequest(request, service, seed);
			store.say("Prompt, seed and settings are set.");
			onUsed();
		}),
		action("Use as input", "image", ({id}) => {
			useAsInput(id);
			onUsed();
		}),
		action("Copy prompt", "copy", async ({request}) => store.say((await copy(request.prompt)) ? "Copied." : "The browser did not allow copying."))
	);
	return {
		row,
		/** Call it when the picture is another one. */
		update() {
			const picture = choose();
			const connection = picture && app.connections[picture.service];
			if (connection) [link.href, link.download] = [connection.url(picture.download_url), picture.filename];
		}
	};

	/** @type {Fn.action} */
	function action(label, icon, act) {
		return button({
			label,
			icon,
			words: compact ? "" : label,
			act: () => {
				const picture = choose();
				if (picture) act(picture);
			}
		});
	}

	/** An Image input node with the picture, wired to the sampler. @param {string} image */
	function useAsInput(image) {
		const sampler = mainSampler(editor.graph);
		const there = sampler && wiresInto(editor.graph, sampler.id, "image")[0]?.from.node;
		if (there && editor.graph.nodes[there]?.kind === "image-input") editor.setValues(there, {image});
		else {
			const bottom = Math.max(0, ...nodesOf(editor.graph).map(({y}) => y)) + 340;
			const {id} = editor.add("image-input", {x: (sampler?.x ?? 0) - 340, y: bottom}, {image});
			if (sampler) editor.do(commands.connecting(`${id}.image`, `${sampler.id}.image`)(editor.graph));
		}
		store.say("The picture is an input now.");
	}
}

/** `navigator.clipboard` is missing on pages served without TLS by name. @param {string} text */
async function copy(text) {
	try {
		await navigator.clipboard.writeText(text);
		return true;
	} catch {
		const before = document.activeElement;
		const field = make("textarea.unseen", {"aria-hidden": "true"});
		field.value = text;
		(document.querySelector("dialog[open]") ?? document.body).append(field);
		field.select();
		const isDone = document.execCommand("copy");
		field.remove();
		if (before instanceof HTMLElement) before.focus();
		return isDone;
	}
}
