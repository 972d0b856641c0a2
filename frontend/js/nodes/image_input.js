/** The Image input node: a picture to start from. */

/** @import { MountNode } from "../../types/app" */

import { button, chooseFiles, make } from "../dom.js";
import { keepAsset } from "../assets.js";
import { notYet, showSource, takeDrops } from "./pictures.js";
import { field, rangeField, watchValue } from "./fields.js";

/** @type {MountNode} */
export function mountImageInput(body, context) {
  const picture = make("img", { alt: "The picture to start from" });
  const hint = make("p", { class: "hint" }, "Drop a picture here");
  const drop = make("div", { class: "drop" }, picture, hint);
  takeDrops(drop, async ([file]) => {
    if (file) {
      context.set({ image: await keepAsset(file) });
    }
  });
  watchValue(context, "image", (source) => {
    picture.hidden = source === null;
    hint.hidden = source !== null;
    void showSource(picture, context.app, source === null ? "" : String(source));
  });
  const choose = button({
    label: "Choose a picture",
    words: "Choose a picture",
    icon: "upload",
    act: async () => {
      const [file] = await chooseFiles({ accept: "image/*", many: false });
      if (file) {
        context.set({ image: await keepAsset(file) });
      }
    },
  });
  body.append(field(context, { name: "image", label: "Picture", control: drop, wide: true }), make("div", { class: "row" }, choose), rangeField(context, { name: "strength", label: "Strength: how much changes" }), notYet(context, "image"));
}
