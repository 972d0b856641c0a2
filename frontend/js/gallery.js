/** The pictures on disk, of both services: pages of them, search, deleting one. */

import {Problem} from "./api.js";
import {isReachable} from "./connection.js";
import {messageOf} from "./format.js";
import {connectionTo} from "./services.js";

const PAGE = 30;

export class Gallery {
	#connections;
	#store;
	/** Services whose oldest picture is loaded. @type {Set<ServiceName>} */
	#complete = new Set();
	#searches = 0;

	/** @param {Connections} connections @param {Store} store */
	constructor(connections, store) {
		this.#connections = connections;
		this.#store = store;
	}

	/** Refreshes whenever a service comes, or the tab is looked at again. */
	follow() {
		document.addEventListener("visibilitychange", () => void (document.hidden || this.#refreshAll()));
		for (const {name} of Object.values(this.#connections)) {
			this.#store.watch(
				({services}) => [isReachable(services[name])],
				isUp => void (isUp && this.refresh(name))
			);
		}
	}

	/** Reads the newest pictures of a service; older ones that were loaded stay. @param {ServiceName} service */
	async refresh(service) {
		await this.#load(service, undefined, (images, old) => {
			const seam = old.findIndex(({key}) => key === images.at(-1)?.key);
			const older = seam < 0 ? [] : old.slice(seam + 1);
			if (images.length >= PAGE && !older.length) this.#complete.delete(service);
			return [...images, ...older];
		});
	}

	/** Pictures whose prompt has these words. @param {string} words */
	async search(words) {
		if (words === this.#gallery.words) return;
		this.#searches += 1;
		this.#complete.clear();
		this.#set({words, images: [], isKnown: false});
		await this.#refreshAll();
	}

	/** Reads the next older pictures. */
	async loadMore() {
		if (this.#gallery.isLoading) return;
		for (const {name} of this.#up().filter(each => !this.#complete.has(each.name))) {
			const last = this.#gallery.images.findLast(({service}) => service === name);
			if (last) {
				await this.#load(name, last.id, (images, old) => {
					const there = new Set(old.map(({key}) => key));
					return [...old, ...images.filter(({key}) => !there.has(key))];
				});
			}
		}
	}

	/** Deletes a picture on disk. True when it is gone. @param {GalleryImage} image */
	async delete({key, id, service}) {
		try {
			await connectionTo(this.#connections, service).ask(client => client.deleteImage(id));
		} catch (error) {
			if (!(error instanceof Problem && error.status === 404)) {
				this.#store.say(`Not deleted: ${messageOf(error)}.`);
				return false;
			}
		}
		const left = Object.entries(this.#store.state.shown).flatMap(([sampler, each]) => {
			const rest = each.service === service ? without(each, id) : each;
			return rest ? [[sampler, rest]] : [];
		});
		this.#set({images: this.#gallery.images.filter(image => image.key !== key)});
		this.#store.set({shown: Object.fromEntries(left)});
		this.#store.say("Deleted.");
		return true;
	}

	/** Pins a picture, or lets cleanup have it again. @param {GalleryImage} image */
	async pin({key, id, service, pinned}) {
		try {
			await connectionTo(this.#connections, service).ask(client => client.pinImage(id, !pinned));
			this.#set({images: this.#gallery.images.map(image => (image.key === key ? {...image, pinned: !pinned} : image))});
			this.#store.say(pinned ? "Cleanup may have it again." : "Pinned: cleanup leaves it.");
		} catch (error) {
			this.#store.say(`Not ${pinned ? "unpinned" : "pinned"}: ${messageOf(error)}.`);
		}
	}

	get #gallery() {
		return this.#store.state.gallery;
	}

	#up() {
		return Object.values(this.#connections).filter(({state}) => isReachable(state));
	}

	#refreshAll() {
		return Promise.all(this.#up().map(({name}) => this.refresh(name)));
	}

	/** @type {GalleryFn.load} */
	async #load(service, before, join) {
		const search = this.#searches;
		const {words} = this.#gallery;
		this.#set({isLoading: true, error: ""});
		try {
			const {images} = await connectionTo(this.#connections, service).ask(client => client.images({limit: PAGE, before, words}));
			if (search !== this.#searches) return; // another search has begun
			if (images.length < PAGE) this.#complete.add(service);
			const named = images.map(image => ({...image, service, key: `${service} ${image.id}`}));
			const isMine = (/** @type {GalleryImage} */ image) => image.service === service;
			const there = this.#gallery.images;
			const all = [...there.filter(image => !isMine(image)), ...join(named, there.filter(isMine))];
			all.sort((a, b) => b.created_at.localeCompare(a.created_at));
			this.#set({images: all, isKnown: true, isComplete: this.#up().every(({name}) => this.#complete.has(name))});
		} catch (error) {
			this.#set({error: messageOf(error)});
		} finally {
			this.#set({isLoading: false});
		}
	}

	/** @param {Partial<GalleryState>} patch */
	#set(patch) {
		this.#store.set({gallery: {...this.#gallery, ...patch}});
	}
}

/** What a node shows, less one picture. @type {GalleryFn.without} */
function without(shown, imageId) {
	const {result} = shown.job;
	if (!result) return shown;
	const images = result.images.filter(({id}) => id !== imageId);
	const job = {...shown.job, result: {...result, images}};
	return images.length ? {...shown, job, index: Math.min(shown.index, images.length - 1)} : null;
}
