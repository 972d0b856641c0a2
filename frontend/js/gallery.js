/** The pictures on disk, of both services: pages of them, search, deleting one. */

import {Problem} from "./api.js";
import {isReachable} from "./connection.js";
import {messageOf} from "./format.js";
import {connectionTo, whenUp} from "./services.js";

const PAGE = 30;

/** @type {Fn.newGallery} */
export function newGallery(connections, store) {
	/** Services whose oldest picture is loaded. @type {Set<ServiceName>} */
	const complete = new Set();
	let searches = 0;
	const gallery = () => store.state.gallery;
	/** @type {Gallery} */
	const own = {
		follow() {
			document.addEventListener("visibilitychange", () => void (document.hidden || refreshAll()));
			whenUp(store, connections, ({name}) => void own.refresh(name));
		},

		async refresh(service) {
			await load(service, undefined, (images, old) => {
				const seam = old.findIndex(({key}) => key === images.at(-1)?.key);
				const older = seam < 0 ? [] : old.slice(seam + 1);
				if (images.length >= PAGE && !older.length) complete.delete(service);
				return [...images, ...older];
			});
		},

		async search(words) {
			if (words === gallery().words) return;
			searches += 1;
			complete.clear();
			set({words, images: [], isKnown: false});
			await refreshAll();
		},

		async loadMore() {
			if (gallery().isLoading) return;
			for (const {name} of up().filter(each => !complete.has(each.name))) {
				const last = gallery().images.findLast(({service}) => service === name);
				if (last) {
					await load(name, last.id, (images, old) => {
						const there = new Set(old.map(({key}) => key));
						return [...old, ...images.filter(({key}) => !there.has(key))];
					});
				}
			}
		},

		async delete({key, id, service}) {
			try {
				await connectionTo(connections, service).ask(client => client.deleteImage(id));
			} catch (error) {
				if (!(error instanceof Problem && error.status === 404)) {
					store.say(`Not deleted: ${messageOf(error)}.`);
					return false;
				}
			}
			const left = Object.entries(store.state.shown).flatMap(([sampler, each]) => {
				const rest = each.service === service ? without(each, id) : each;
				return rest ? [[sampler, rest]] : [];
			});
			set({images: gallery().images.filter(image => image.key !== key)});
			store.set({shown: Object.fromEntries(left)});
			store.say("Deleted.");
			return true;
		},

		async pin({key, id, service, pinned}) {
			try {
				await connectionTo(connections, service).ask(client => client.pinImage(id, !pinned));
				set({images: gallery().images.map(image => (image.key === key ? {...image, pinned: !pinned} : image))});
				store.say(pinned ? "Cleanup may have it again." : "Pinned: cleanup leaves it.");
			} catch (error) {
				store.say(`Not ${pinned ? "unpinned" : "pinned"}: ${messageOf(error)}.`);
			}
		}
	};
	return own;

	function up() {
		return Object.values(connections).filter(({state}) => isReachable(state));
	}

	function refreshAll() {
		return Promise.all(up().map(({name}) => own.refresh(name)));
	}

	/** @type {Fn.load} */
	async function load(service, before, join) {
		const search = searches;
		const {words} = gallery();
		set({isLoading: true, error: ""});
		try {
			const {images} = await connectionTo(connections, service).ask(client => client.images({limit: PAGE, before, words}));
			if (search !== searches) return; // another search has begun
			if (images.length < PAGE) complete.add(service);
			const named = images.map(image => ({...image, service, key: `${service} ${image.id}`}));
			const isMine = (/** @type {GalleryImage} */ image) => image.service === service;
			const there = gallery().images;
			const all = [...there.filter(image => !isMine(image)), ...join(named, there.filter(isMine))];
			all.sort((a, b) => b.created_at.localeCompare(a.created_at));
			set({images: all, isKnown: true, isComplete: up().every(({name}) => complete.has(name))});
		} catch (error) {
			set({error: messageOf(error)});
		} finally {
			set({isLoading: false});
		}
	}

	/** @type {Fn.gallerySet} */
	function set(patch) {
		store.set({gallery: {...gallery(), ...patch}});
	}
}

/** What a node shows, less one picture. @type {Fn.without} */
function without(shown, imageId) {
	const {result} = shown.job;
	if (!result) return shown;
	const images = result.images.filter(({id}) => id !== imageId);
	const job = {...shown.job, result: {...result, images}};
	return images.length ? {...shown, job, index: Math.min(shown.index, images.length - 1)} : null;
}
