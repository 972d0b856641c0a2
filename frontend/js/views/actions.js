/** What can be done with one picture: the same on its node and in the viewer. */

import {FIRST_SERVICE} from "../config.js";
import {button, copyText, icon, make} from "../dom.js";
import {mainSampler} from "../graph/plan.js";
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
			editor.useAsInput(id);
			store.say("The picture is an input now.");
			onUsed();
		}),
		action("Copy prompt", "copy", async ({request}) => store.say((await copyText(request.prompt)) ? "Copied." : "The browser did not allow copying."))
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
}
