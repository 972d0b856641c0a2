/** The Reference images node. */

/** @import { MountNode } from "../../types/app" */

import { button, chooseFiles, keep, make } from "../dom.js";
import { keepAsset } from "../assets.js";
import { MAX_REFERENCES } from "../graph/table.js";
import { notYet, showSource, takeDrops } from "./pictures.js";
import { field, watchValue } from "./fields.js";

/** @type {MountNode} */
export function mountReferences(body, context) {
  const list = make("div", { class: "thumbs" });
  const drop = make("div", { class: "drop small" }, list, make("p", { class: "hint" }, "Drop up to four pictures here"));
  const names = () => /** @type {string[]} */ (context.node().values.images);
  /** @param {File[]} files */
  const add = async (files) => {
    const added = await Promise.all(files.map(keepAsset));
    context.set({ images: [...names(), ...added].slice(0, MAX_REFERENCES) });
  };
  takeDrops(drop, (files) => void add(files));
  watchValue(context, "images", (value) => {
    keep(list, Array.isArray(value) ? value : [], String, (source) => {
      const picture = make("img", { alt: "Reference" });
      void showSource(picture, context.app, source);
      const remove = button({ label: "Remove this reference", icon: "close", kind: "bare", act: () => context.set({ images: names().filter((name) => name !== source) }) });
      return make("div", { class: "thumb" }, picture, remove);
    });
  });
  const choose = button({ label: "Choose pictures", words: "Choose pictures", icon: "upload", act: async () => add(await chooseFiles({ accept: "image/*", many: true })) });
  body.append(field(context, { name: "images", label: "References", control: drop, errors: ["reference_images"], wide: true }), make("div", { class: "row" }, choose), notYet(context, "reference_images"));
}
