/** A Compare node, large. */

/** @import { App } from "../../types/app" */

import { find } from "../dom.js";
import { focusSlider } from "../nodes/compare.js";
import { mountNode } from "../nodes/nodes.js";

/** @param {App} app */
export function mountComparison(app) {
  const dialog = find("#comparison", HTMLDialogElement);
  const body = find("#comparison-body", HTMLElement);
  let end = () => {};
  const close = () => app.store.set({ compared: null });
  dialog.addEventListener("close", close);
  find("#comparison-close", HTMLButtonElement).addEventListener("click", close);
  app.store.watch(
    ({ compared }) => [compared],
    (compared) => {
      end();
      end = () => {};
      body.replaceChildren();
      const node = compared === null ? undefined : app.editor.graph.nodes[compared];
      if (node) {
        end = mountNode(app, node, body, "form");
        dialog.showModal();
        focusSlider(body);
      } else if (dialog.open) {
        dialog.close();
      }
    },
  );
}
