/** Everything on disk, as thumbnails. */

import {find, icon, keep, make} from "../dom.js";
import {precision} from "../format.js";
import {show} from "../pictures.js";
import {servicesOf} from "../services.js";

const TYPING_MS = 250;

/** @type {Fn.mountGallery} */
export function mountGallery({store, connections, gallery}, panel) {
	const search = make("input", {type: "search", placeholder: "Search prompts", "aria-label": "Search prompts", id: "gallery-search"});
	const tiles = make("ul.tiles", {id: "tiles"});
	const note = make("p.hint.empty");
	const end = make("div.end");
	panel.append(search, note, tiles, end);

	/** @type {Timer} */
	let timer;
	search.oninput = () => {
		clearTimeout(timer);
		timer = setTimeout(() => void gallery.search(search.value.trim()), TYPING_MS);
	};
	const observer = new IntersectionObserver(([entry]) => entry?.isIntersecting && void gallery.loadMore(), {root: find("#panel"), rootMargin: "600px"});
	store.watch(state => [state.gallery, servicesOf(state).length], ({images, words, isKnown, isComplete, error}, services) => {
		panel.dataset.services = String(services);
		keep(tiles, images, ({key}) => key, tile, (element, {pinned}) => void (find(".pinned", element).hidden = !pinned));
		note.textContent = error && !images.length ? error : "";
		if (isKnown && !images.length) {
			note.textContent = words ? "No prompt has these words." : "Every picture that is drawn is kept on disk and shows up here.";
		}
		note.hidden = !note.textContent;
		observer.unobserve(end);
		if (!isComplete && images.length) {
			observer.observe(end); // told at once when it is in sight already
		}
	});

	/** @type {Fn.tile} */
	function tile(image) {
		const thumbnail = make("img", {alt: image.prompt, loading: "lazy", width: 256, height: 256});
		void show(thumbnail, image.thumbnail_url, connections[image.service]);
		const pin = make("span.pinned", {role: "img", "aria-label": "Pinned"}, icon("pin"));
		const attributes = {title: image.prompt, onclick: () => store.set({viewed: image.key})};
		return make("li", make("button.tile", attributes, thumbnail, make("span.badge", precision(image.precision)), pin));
	}
}
