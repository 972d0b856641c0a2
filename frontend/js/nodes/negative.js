/** The Negative prompt node. */

/** @import { MountNode } from "../../types/app" */

import { wiresOutOf } from "../graph/graph.js";
import { modelOfSampler } from "../models.js";
import { numberField, textField } from "./fields.js";

/** @type {MountNode} */
export function mountNegative(body, context) {
  const { box } = textField(context, {
    name: "text",
    label: "What should it keep away from?",
    rows: 2,
    placeholder: "nothing; a step takes twice as long with one",
    errors: ["negative_prompt"],
  });
  const scale = numberField(context, {
    name: "true_cfg_scale",
    label: "Strength (true CFG)",
    fallback: (state) => {
      const [wire] = wiresOutOf(state.document.graph, context.id);
      return wire ? (modelOfSampler(state, wire.to.node)?.defaults.true_cfg_scale ?? null) : null;
    },
  });
  body.append(box, scale);
}
