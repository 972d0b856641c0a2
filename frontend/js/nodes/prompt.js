/** The Prompt node, with examples while it is empty. */

/** @import { MountNode } from "../../types/app" */

import { keep, make } from "../dom.js";
import { wiresOutOf } from "../graph/graph.js";
import { modelOfSampler } from "../models.js";
import { textField } from "./fields.js";

/** @type {MountNode} */
export function mountPrompt(body, context) {
  const { runs } = context.app;
  const { box, area } = textField(context, {
    name: "text",
    label: "What should the picture show?",
    rows: 4,
    placeholder: "a red balloon over green hills at sunset",
    errors: ["prompt"],
  });
  area.dataset.role = "prompt";
  area.enterKeyHint = "go";
  area.addEventListener("keydown", (event) => {
    const isPlainEnter = event.key === "Enter" && !event.shiftKey && !event.altKey && !event.ctrlKey && !event.metaKey;
    if (isPlainEnter && !event.isComposing) {
      event.preventDefault();
      runs.start();
    }
  });
  const examples = make("div", { class: "examples", role: "group", "aria-label": "Example prompts" });
  context.watch(
    (state) => [exampleModel(state)],
    (model) => keep(examples, model?.example_prompts.slice(0, 3) ?? [], String, example),
  );
  body.append(box, examples, make("p", { class: "hint keys" }, "Enter draws · Shift+Enter begins a new line"));

  /** Of the model that this prompt goes to. @param {import("../../types/state").State} state */
  function exampleModel(state) {
    const [wire] = wiresOutOf(state.document.graph, context.id);
    return wire ? modelOfSampler(state, wire.to.node) : null;
  }

  /** @param {string} text */
  function example(text) {
    const button = make("button", { class: "example", type: "button" }, text);
    button.addEventListener("click", () => {
      context.set({ text });
      area.focus({ preventScroll: true });
    });
    return button;
  }
}
