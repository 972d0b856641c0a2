/** The pictures on disk: pages of them, deleting one. */

/** @import { StoredImage } from "../types/api" */
/** @import { Gallery as GalleryState, Shown } from "../types/state" */
/** @import { Connection } from "./connection.js" */
/** @import { Store } from "./store.js" */

import { Problem } from "./api.js";
import { isReachable } from "./connection.js";

const PAGE = 24;

export class Gallery {
  #connection;
  #store;

  /** @param {Connection} connection @param {Store} store */
  constructor(connection, store) {
    this.#connection = connection;
    this.#store = store;
  }

  /** Refreshes whenever the service comes, or the tab is looked at again. */
  follow() {
    const refreshIfReachable = () => {
      if (isReachable(this.#store.state) && !document.hidden) {
        void this.refresh();
      }
    };
    document.addEventListener("visibilitychange", refreshIfReachable);
    this.#store.watch((state) => [isReachable(state)], () => refreshIfReachable());
  }

  /** Reads the newest pictures; older ones that were loaded stay. */
  async refresh() {
    await this.#load(undefined, (images, isLast) => {
      const old = this.#gallery.images;
      const seam = old.findIndex(({ id }) => id === images.at(-1)?.id);
      const older = seam < 0 || isLast ? [] : old.slice(seam + 1);
      return {
        images: [...images, ...older],
        isComplete: isLast || (older.length > 0 && this.#gallery.isComplete),
      };
    });
  }

  /** Reads the next older pictures. */
  async loadMore() {
    const last = this.#gallery.images.at(-1);
    if (last && !this.#gallery.isComplete && !this.#gallery.isLoading) {
      await this.#load(last.id, (images, isLast) => {
        const there = new Set(this.#gallery.images.map(({ id }) => id));
        const added = images.filter(({ id }) => !there.has(id));
        return { images: [...this.#gallery.images, ...added], isComplete: isLast };
      });
    }
  }

  /** Deletes a picture on disk. True when it is gone. @param {string} id */
  async delete(id) {
    try {
      await this.#connection.ask((client) => client.deleteImage(id));
    } catch (error) {
      if (!(error instanceof Problem && error.status === 404)) {
        this.#store.say(`Not deleted: ${error instanceof Error ? error.message : error}.`);
        return false;
      }
    }
    this.#set({ images: this.#gallery.images.filter((image) => image.id !== id) });
    this.#store.set({ shown: without(this.#store.state.shown, id) });
    this.#store.say("Deleted.");
    return true;
  }

  get #gallery() {
    return this.#store.state.gallery;
  }

  /**
   * @param {string | undefined} before
   * @param {(images: StoredImage[], isLast: boolean) => Partial<GalleryState>} join
   */
  async #load(before, join) {
    this.#set({ isLoading: true, error: "" });
    try {
      const { images } = await this.#connection.ask((client) =>
        client.images({ limit: PAGE, before }),
      );
      this.#set({ ...join(images, images.length < PAGE), isKnown: true });
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

/** What is on the stage, less one picture. @param {Shown | null} shown @param {string} imageId */
function without(shown, imageId) {
  const result = shown?.job.result;
  if (!shown || !result?.images.some(({ id }) => id === imageId)) {
    return shown;
  }
  const images = result.images.filter(({ id }) => id !== imageId);
  const job = { ...shown.job, result: { ...result, images } };
  return images.length ? { job, index: Math.min(shown.index, images.length - 1) } : null;
}
