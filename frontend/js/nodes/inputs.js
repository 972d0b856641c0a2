/** Nodes with pictures to start from: the Image input, and the Reference images. */

import {button, chooseFiles, keep, make} from "../dom.js";
import {MAX_REFERENCES} from "../graph/table.js";
import {keptOf, showSource, takeDrops, whyNotUsed} from "./pictures.js";
import {field, rangeField, watchValue} from "./fields.js";

/** @type {MountNode} */
export function mountImageInput(body, context) {
	const picture = make("img", {alt: "The picture to start from"});
	const hint = make("p.hint", "Drop a picture here");
	const drop = make("div.drop", picture, hint);
	const take = async (/** @type {readonly File[]} */ files) => {
		const [image] = await keptOf(context.app, files.slice(0, 1));
		if (image) context.set({image});
	};
	takeDrops(drop, take);
	watchValue(context, "image", async source => {
		picture.hidden = source === null;
		hint.hidden = source !== null;
		await showSource(picture, context.app, String(source ?? ""));
	});
	const choose = button({words: "Choose a picture", icon: "upload", act: async () => take(await chooseFiles("image/*"))});
	body.append(
		field(context, {name: "image", label: "Picture", control: drop, wide: true}),
		make("div.row", choose),
		rangeField(context, {name: "strength", label: "Strength: how much changes"}),
		whyNotUsed(context, "image")
	);
}

/** @type {MountNode} */
export function mountReferences(body, context) {
	const list = make("div.thumbs");
	const hint = make("p.hint", "Drop up to four pictures here");
	const drop = make("div.drop.small", list, hint);
	const names = () => /** @type {readonly string[]} */ (context.node().values.images);
	const take = async (/** @type {readonly File[]} */ files) => {
		const images = [...names(), ...(await keptOf(context.app, files))];
		context.set({images: images.slice(0, MAX_REFERENCES)});
		if (images.length > MAX_REFERENCES) context.app.store.say(`A picture takes ${MAX_REFERENCES} references; the others were left out.`);
	};
	takeDrops(drop, take);
	const choose = button({words: "Choose pictures", icon: "upload", act: async () => take(await chooseFiles("image/*", true))});
	watchValue(context, "images", () => {
		keep(list, names(), String, thumb);
		hint.hidden = choose.hidden = names().length >= MAX_REFERENCES;
	});
	body.append(
		field(context, {name: "images", label: "References", control: drop, errors: ["reference_images"], wide: true}),
		make("div.row", choose),
		whyNotUsed(context, "references")
	);

	/** @param {string} source */
	function thumb(source) {
		const picture = make("img", {alt: "Reference"});
		void showSource(picture, context.app, source);
		const remove = () => context.set({images: names().filter(name => name !== source)});
		return make("div.thumb", picture, button({label: "Remove this reference", icon: "close", kind: "bare", act: remove}));
	}
}
