/** One picture of the gallery, large. Arrows go on, Escape closes, Delete asks. */

/** @import { StoredImage } from "../../types/api" */
/** @import { Connection } from "../connection.js" */
/** @import { Gallery } from "../gallery.js" */
/** @import { Store } from "../store.js" */

import { find, icon, make } from "../dom.js";
import { fileSize, modelTitle, moment, precision, size } from "../format.js";
import { clear, show } from "../pictures.js";
import { confirmed } from "./confirm.js";
import { mountActions, showFacts } from "./facts.js";

/** @param {Store} store @param {Connection} connection @param {Gallery} gallery */
export function mountViewer(store, connection, gallery) {
  const dialog = find("#viewer", HTMLDialogElement);
  const picture = find("#viewer-picture", HTMLImageElement);
  const prompt = find("#viewer-prompt", HTMLElement);
  const facts = find("#viewer-facts", HTMLElement);
  const actions = find("#viewer-actions", HTMLElement);
  const previous = find("#viewer-previous", HTMLButtonElement);
  const next = find("#viewer-next", HTMLButtonElement);

  const close = () => store.set({ viewed: null });
  const offerActions = mountActions(actions, {
    store,
    connection,
    choose: () => imageAt(0),
    onUsed: close,
  });
  const remove = make("button", { class: "quiet", type: "button" }, icon("delete"), "Delete");
  actions.append(remove);

  find("#viewer-close", HTMLButtonElement).addEventListener("click", close);
  previous.addEventListener("click", () => void go(-1));
  next.addEventListener("click", () => void go(1));
  remove.addEventListener("click", () => void askAndDelete());
  dialog.addEventListener("close", close);
  dialog.addEventListener("keydown", (event) => {
    /** @type {Record<string, () => void>} */
    const keys = {
      ArrowLeft: () => void go(-1),
      ArrowRight: () => void go(1),
      Delete: () => void askAndDelete(),
    };
    const act = keys[event.key];
    if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act();
    }
  });

  store.watch(
    ({ viewed, gallery, service }) => [viewed, gallery.images, gallery.isComplete, service.models],
    (viewed, _images, isComplete, models) => {
      const image = imageAt(0);
      if (!viewed || !image) {
        if (dialog.open) {
          dialog.close();
          clear(picture);
        }
        return;
      }
      // Not `disabled`: a disabled button would keep the focus and swallow the next arrow key.
      previous.setAttribute("aria-disabled", String(!imageAt(-1)));
      next.setAttribute("aria-disabled", String(!imageAt(1) && isComplete));
      picture.alt = image.prompt;
      picture.style.setProperty("--ratio", String(image.width / image.height));
      picture.style.setProperty("--widest", `${4 * image.width}px`);
      prompt.textContent = image.prompt;
      showFacts(facts, factsOf(image, modelTitle(image.request.model, models)));
      offerActions(image);
      void show(picture, image.image_url, connection);
      if (!dialog.open) {
        dialog.showModal();
      }
    },
  );

  /** The picture so many places after the one that is looked at. @param {number} distance */
  function imageAt(distance) {
    const { viewed, gallery } = store.state;
    const place = gallery.images.findIndex(({ id }) => id === viewed);
    return place < 0 ? null : (gallery.images[place + distance] ?? null);
  }

  /** @param {number} distance */
  async function go(distance) {
    if (distance > 0 && !imageAt(distance)) {
      await gallery.loadMore();
    }
    const image = imageAt(distance);
    if (image) {
      store.set({ viewed: image.id });
    }
  }

  async function askAndDelete() {
    const image = imageAt(0);
    const neighbour = imageAt(1) ?? imageAt(-1);
    if (!image || !(await confirmed("Delete this picture? Its file goes with it, for good."))) {
      return;
    }
    store.set({ viewed: neighbour?.id ?? null });
    if (!(await gallery.delete(image.id))) {
      store.set({ viewed: image.id });
    }
  }
}

/** @param {StoredImage} image @param {string} model @returns {[string, string][]} */
function factsOf({ seed, width, height, request, precision: name, size_bytes, created_at }, model) {
  /** @type {[string, string][]} */
  const facts = [
    ["Seed", String(seed)],
    ["Size", size({ width, height })],
    ["Steps", String(request.num_inference_steps)],
    ["Model", model],
    ["Precision", precision(name)],
    ["File", `${request.output_format.toUpperCase()}, ${fileSize(size_bytes)}`],
    ["Drawn", moment(created_at)],
  ];
  if (request.negative_prompt) {
    facts.push(["Negative prompt", request.negative_prompt]);
  }
  return facts;
}
