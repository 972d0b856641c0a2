/** Everything on disk, newest first, and the viewer over it. */

import { find, make } from "./dom.js";
import { facts } from "./result.js";

/** @typedef {import("./api.js").Api} Api @typedef {import("./store.js").Store} Store */

const PAGE = 24;

export class Gallery {
  /** @param {Api} api @param {Store} store @param {(values: Record<string, any>) => void} use */
  constructor(api, store, use) {
    this.api = api;
    this.store = store;
    this.use = use;
    this.viewer = find("viewer", HTMLDialogElement);
    this.list = find("gallery", HTMLUListElement);
    find("more", HTMLButtonElement).onclick = () => this.more();
    find("viewer-close", HTMLButtonElement).onclick = () => this.viewer.close();
    find("viewer-previous", HTMLButtonElement).onclick = () => this.view(this.store.state.viewed - 1);
    find("viewer-next", HTMLButtonElement).onclick = () => this.view(this.store.state.viewed + 1);
    find("viewer-delete", HTMLButtonElement).onclick = () => this.remove();
    this.viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.view(this.store.state.viewed - 1);
      if (event.key === "ArrowRight") this.view(this.store.state.viewed + 1);
    });
    /** @type {any[] | null} */
    this.shown = null;
    store.subscribe((state) => {
      if (state.images !== this.shown) this.show(state.images);
      find("more", HTMLButtonElement).hidden = state.allShown;
    });
  }

  /** The newest page, in place of what is shown. */
  async refresh() {
    const limit = Math.max(PAGE, this.store.state.images.length);
    const { images } = await this.api.get(`/images?limit=${Math.min(500, limit)}`);
    this.store.set({ images, allShown: images.length < limit });
  }

  async more() {
    const last = this.store.state.images.at(-1);
    const { images } = await this.api.get(`/images?limit=${PAGE}&before=${encodeURIComponent(last.id)}`);
    this.store.set({ images: [...this.store.state.images, ...images], allShown: images.length < PAGE });
  }

  /** @param {any[]} images */
  async show(images) {
    this.shown = images;
    const rows = await Promise.all(
      images.map(async (image, index) =>
        make(
          "li",
          {},
          make(
            "button",
            { type: "button", onclick: () => this.view(index), title: image.prompt },
            make("img", { src: await this.api.image(image.thumbnail_url), alt: image.prompt, loading: "lazy" }),
          ),
        ),
      ),
    );
    if (this.shown !== images) return; // a newer list came meanwhile
    this.list.replaceChildren(...rows);
    find("gallery-empty", HTMLElement).hidden = images.length > 0;
  }

  /** @param {number} index */
  async view(index) {
    const image = this.store.state.images[index];
    if (!image) return;
    this.store.set({ viewed: index });
    Object.assign(find("viewer-image", HTMLImageElement), { src: await this.api.image(image.image_url), alt: image.prompt });
    find("viewer-facts", HTMLElement).replaceChildren(
      make("p", {}, image.prompt),
      facts({ ...image, ...image.request, precision: image.precision }),
      make(
        "div",
        { className: "actions" },
        make("a", { href: await this.api.image(image.download_url), download: image.filename }, "Download"),
        make("button", { type: "button", onclick: () => this.reuse(image) }, "Use these settings"),
      ),
    );
    if (!this.viewer.open) this.viewer.showModal();
  }

  /** @param {any} image */
  reuse(image) {
    this.viewer.close();
    this.use(image.request);
  }

  async remove() {
    const { images, viewed } = this.store.state;
    const image = images[viewed];
    if (!image || !window.confirm("Delete this picture from disk?")) return;
    await this.api.remove(`/images/${image.id}`);
    this.viewer.close();
    this.store.set({ images: images.filter(({ id }) => id !== image.id), viewed: -1 });
  }
}
