/** The Note node: words, and nothing else. */

/** @import { MountNode } from "../../types/app" */

import { textField } from "./fields.js";

/** @type {MountNode} */
export function mountNote(body, context) {
  body.append(textField(context, { name: "text", label: "Note", rows: 4, placeholder: "Words for whoever opens this" }).box);
}
