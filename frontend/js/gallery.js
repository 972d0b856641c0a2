/** The pictures on disk, of both services: pages of them, search, deleting one. */

/** @import { GalleryImage, ServiceName, Gallery as GalleryState, Shown } from "../types/state" */
/** @import { Connection } from "./connection.js" */
/** @import { Connections } from "./services.js" */
/** @import { Store } from "./store.js" */

import { Problem } from "./api.js";
import { isReachable } from "./connection.js";
import { connectionTo } from "./services.js";

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
    const refreshAll = () => {
      if (!document.hidden) {
        this.#up().forEach((connection) => void this.refresh(connection.name));
      }
    };
    document.addEventListener("visibilitychange", refreshAll);
    for (const connection of Object.values(this.#connections)) {
      this.#store.watch(
        ({ services }) => [isReachable(services[connection.name])],
        (isUp) => void (isUp && this.refresh(connection.name)),
      );
    }
  }

  /** Reads the newest pictures of a service; older ones that were loaded stay. @param {ServiceName} service */
  async refresh(service) {
    await this.#load(service, undefined, (images, old) => {
      const seam = old.findIndex(({ key }) => key === images.at(-1)?.key);
      const older = seam < 0 ? [] : old.slice(seam + 1);
      if (images.length >= PAGE && !older.length) {
        this.#complete.delete(service);
      }
      return [...images, ...older];
    });
  }

  /** Pictures whose prompt has these words. @param {string} words */
  async search(words) {
    if (words === this.#gallery.words) {
      return;
    }
    this.#searches += 1;
    this.#complete.clear();
    this.#set({ words, images: [], isKnown: false });
    await Promise.all(this.#up().map(({ name }) => this.refresh(name)));
  }

  /** Reads the next older pictures. */
  async loadMore() {
    if (this.#gallery.isLoading) {
      return;
    }
    const open = this.#up().filter(({ name }) => !this.#complete.has(name));
    for (const { name } of open) {
      const last = this.#gallery.images.filter(({ service }) => service === name).at(-1);
      if (last) {
        await this.#load(name, last.id, (images, old) => {
          const there = new Set(old.map(({ key }) => key));
          return [...old, ...images.filter(({ key }) => !there.has(key))];
        });
      }
    }
  }

  /** Deletes a picture on disk. True when it is gone. @param {GalleryImage} image */
  async delete({ key, id, service }) {
    try {
      await connectionTo(this.#connections, service).ask((client) => client.deleteImage(id));
    } catch (error) {
      if (!(error instanceof Problem && error.status === 404)) {
        this.#store.say(`Not deleted: ${error instanceof Error ? error.message : error}.`);
        return false;
      }
    }
    const { shown } = this.#store.state;
    const left = Object.entries(shown).flatMap(([sampler, each]) => {
      const rest = each.service === service ? without(each, id) : each;
      return rest ? [[sampler, rest]] : [];
    });
    this.#set({ images: this.#gallery.images.filter((image) => image.key !== key) });
    this.#store.set({ shown: Object.fromEntries(left) });
    this.#store.say("Deleted.");
    return true;
  }

  get #gallery() {
    return this.#store.state.gallery;
  }

  /** @returns {Connection[]} */
  #up() {
    return Object.values(this.#connections).filter(({ state }) => isReachable(state));
  }

  /**
   * @param {ServiceName} service
   * @param {string | undefined} before
   * @param {(images: GalleryImage[], old: GalleryImage[]) => GalleryImage[]} join
   */
  async #load(service, before, join) {
    const search = this.#searches;
    const words = this.#gallery.words || undefined;
    this.#set({ isLoading: true, error: "" });
    try {
      const { images } = await connectionTo(this.#connections, service).ask((client) => client.images({ limit: PAGE, before, words }));
      if (search !== this.#searches) {
        return; // another search has begun
      }
      if (images.length < PAGE) {
        this.#complete.add(service);
      }
      const named = images.map((image) => ({ ...image, service, key: `${service} ${image.id}` }));
      const others = this.#gallery.images.filter((image) => image.service !== service);
      const mine = join(named, this.#gallery.images.filter((image) => image.service === service));
      const all = [...others, ...mine].sort((a, b) => b.created_at.localeCompare(a.created_at));
      this.#set({ images: all, isKnown: true, isComplete: this.#up().every(({ name }) => this.#complete.has(name)) });
    } catch (error) {
      this.#set({ error: error instanceof Error ? error.message : String(error) });
    } finally {
      this.#set({ isLoading: false });
    }
  }

  /** @param {Partial<GalleryState>} patch */
  #set(patch) {
    this.#store.set({ gallery: { ...this.#gallery, ...patch } });
  }
}

/** What a node shows, less one picture. @param {Shown} shown @param {string} imageId @returns {Shown | null} */
function without(shown, imageId) {
  const { result } = shown.job;
  if (!result?.images.some(({ id }) => id === imageId)) {
    return shown;
  }
  const images = result.images.filter(({ id }) => id !== imageId);
  const job = { ...shown.job, result: { ...result, images } };
  return images.length ? { ...shown, job, index: Math.min(shown.index, images.length - 1) } : null;
}
