/** What nodes with pictures of the page share. */

/** @import { App, NodeContext } from "../../types/app" */

import { isAsset, readAsset } from "../assets.js";
import { make } from "../dom.js";
import { show } from "../pictures.js";
import { servicesOf } from "../services.js";

/** Shows a picture of the page, or one of a service by its id; "" shows none. @param {HTMLImageElement} image @param {App} app @param {string} source */
export async function showSource(image, app, source) {
  if (image.dataset.source === source) {
    return;
  }
  image.dataset.source = source;
  if (!source) {
    image.removeAttribute("src");
  } else if (isAsset(source)) {
    const blob = await readAsset(source);
    if (blob && image.dataset.source === source) {
      const url = URL.createObjectURL(blob);
      image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
      image.src = url;
    }
  } else {
    const known = app.store.state.gallery.images.find(({ id }) => id === source);
    const connection = known ? app.connections[known.service] : Object.values(app.connections)[0];
    if (connection) {
      await show(image, `/images/${encodeURIComponent(source)}`, connection);
    }
  }
}

/** Pictures that are dropped on an element are its own. @param {HTMLElement} element @param {(files: File[]) => void} take */
export function takeDrops(element, take) {
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (files.length) {
      event.preventDefault();
      event.stopPropagation();
      take(files);
    }
  });
}

/** Says which services refuse a field of the request in this version. @param {NodeContext} context @param {string} name */
export function notYet(context, name) {
  const words = make("p", { class: "hint warning" });
  context.watch(
    (state) => [servicesOf(state).filter(({ info }) => info?.not_built?.fields.includes(name)).map((service) => service.name.toUpperCase()).join(" and ")],
    (names) => {
      words.hidden = !names;
      words.textContent = names && `${names} cannot use this yet: the service refuses requests with “${name}”.`;
    },
  );
  return words;
}
