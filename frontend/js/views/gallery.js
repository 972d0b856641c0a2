/** Everything on disk, as thumbnails. */

/** @import { StoredImage } from "../../types/api" */
/** @import { Connection } from "../connection.js" */
/** @import { Gallery } from "../gallery.js" */
/** @import { Store } from "../store.js" */

import { find, keep, make } from "../dom.js";
import { show } from "../pictures.js";

/** @param {Store} store @param {Connection} connection @param {Gallery} gallery */
export function mountGallery(store, connection, gallery) {
  const tiles = find("#tiles", HTMLElement);
  const note = find("#gallery-note", HTMLElement);
  const more = find("#more", HTMLButtonElement);
  more.addEventListener("click", () => void gallery.loadMore());

  store.watch(
    ({ gallery }) => [gallery],
    ({ images, isKnown, isComplete, isLoading, error }) => {
      keep(tiles, images, ({ id }) => id, tile);
      more.hidden = images.length === 0 || isComplete;
      more.disabled = isLoading;
      note.textContent = error && !images.length ? error : "";
      if (isKnown && !images.length) {
        note.textContent = "Every picture that is drawn is kept on disk and shows up here.";
      }
      note.hidden = !note.textContent;
    },
  );

  /** @param {StoredImage} image */
  function tile(image) {
    const thumbnail = make("img", { alt: image.prompt, loading: "lazy", width: 256, height: 256 });
    void show(thumbnail, image.thumbnail_url, connection);
    const button = make("button", { class: "tile", type: "button", title: image.prompt }, thumbnail);
    button.addEventListener("click", () => store.set({ viewed: image.id }));
    return make("li", {}, button);
  }
}
