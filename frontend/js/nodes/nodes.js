/** How each type of node looks, and how its view begins and ends. */

/** @import { App, MountNode, NodeContext } from "../../types/app" */
/** @import { GraphNode, NodeKind } from "../../types/graph" */

import { mountCompare } from "./compare.js";
import { mountImage } from "./image.js";
import { mountImageInput } from "./image_input.js";
import { mountLora } from "./lora.js";
import { mountMask } from "./mask.js";
import { mountModel } from "./model.js";
import { mountNegative } from "./negative.js";
import { mountNote } from "./note.js";
import { mountPrompt } from "./prompt.js";
import { mountReferences } from "./references.js";
import { mountSampler } from "./sampler.js";

/** @type {Readonly<Record<NodeKind, MountNode>>} */
const MOUNTS = {
  model: mountModel,
  lora: mountLora,
  prompt: mountPrompt,
  negative: mountNegative,
  "image-input": mountImageInput,
  mask: mountMask,
  references: mountReferences,
  sampler: mountSampler,
  image: mountImage,
  compare: mountCompare,
  note: mountNote,
};

/**
 * Fills the body of a node. The view follows the state until it is ended.
 * @param {App} app
 * @param {GraphNode} node
 * @param {HTMLElement} body
 * @param {NodeContext["place"]} place
 * @returns {() => void} ends it
 */
export function mountNode(app, node, body, place) {
  /** @type {(() => void)[]} */
  const ends = [];
  let last = node;
  MOUNTS[node.kind](body, {
    app,
    id: node.id,
    place,
    node: () => (last = app.editor.graph.nodes[node.id] ?? last),
    set: (values) => app.editor.setValues(node.id, values),
    watch: (select, react) => void ends.push(app.store.watch(select, react)),
    onEnd: (act) => void ends.push(act),
  });
  return () => ends.splice(0).forEach((end) => end());
}
