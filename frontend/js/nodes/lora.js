/** The LoRA node: a file of the library, or one on its way there. */

/** @import { LoraInList as Lora } from "../../types/api" */
/** @import { MountNode } from "../../types/app" */
/** @import { State } from "../../types/state" */

import { button, chooseFiles, find, keep, make } from "../dom.js";
import { fileSize } from "../format.js";
import { wiresOutOf } from "../graph/graph.js";
import { modelOf } from "../models.js";
import { serviceNamed } from "../services.js";
import { field, rangeField, watchValue, write } from "./fields.js";

/** @type {MountNode} */
export function mountLora(body, context) {
  const { library } = context.app;
  const select = make("select");
  select.addEventListener("change", () => context.set({ name: select.value || null, trigger_word: null }));
  const word = make("input", { type: "text", maxlength: 50, spellcheck: "false" });
  word.addEventListener("input", () => context.set({ trigger_word: word.value || null }));
  word.addEventListener("blur", () => context.app.editor.endSeries());
  const facts = make("p", { class: "hint" });
  const misfit = make("p", { class: "error" });
  const upload = make("div", { class: "upload" }, make("p", { class: "upload-name" }), make("progress", { max: 1, value: 0, "aria-label": "Upload" }), make("p", { class: "error" }));
  const choose = button({ label: "Choose a file", words: "Choose a file", icon: "upload", act: () => void fill() });
  const again = button({ label: "Try again", words: "Try again", act: () => void library.again(context.id) });
  const nameBox = field(context, { name: "name", label: "File", control: select, errors: ["loras", "lora_name"], wide: true });

  context.watch(
    (state) => [lorasFor(state), context.node().values.name],
    (loras, name) => {
      keep(select, [{ name: "" }, ...loras], (lora) => lora.name, (lora) => make("option", { value: lora.name }, lora.name || "Choose one …"));
      if (typeof name === "string" && !loras.some((lora) => lora.name === name)) {
        select.append(make("option", { value: name, "data-key": name }, name));
      }
      select.value = String(name ?? "");
      const lora = loras.find((each) => each.name === name);
      word.placeholder = lora?.trigger_words?.length ? lora.trigger_words.join(", ") : "none";
      facts.textContent = lora ? factsOf(lora) : "";
      facts.hidden = !lora;
    },
  );
  context.watch(
    (state) => [whyNot(state)],
    (why) => {
      misfit.textContent = why;
      misfit.hidden = !why;
    },
  );
  context.watch(
    ({ uploads }) => [uploads[context.id]],
    (now) => {
      upload.hidden = !now;
      nameBox.hidden = Boolean(now);
      choose.hidden = Boolean(now && now.phase === "sending") || context.node().values.name !== null;
      again.hidden = now?.phase !== "failed";
      if (now) {
        find(".upload-name", HTMLElement, upload).textContent = `${now.filename} · ${fileSize(now.size)}${now.phase === "sending" ? ` · ${Math.round(100 * now.fraction)} %` : ""}`;
        const bar = find("progress", HTMLProgressElement, upload);
        bar.hidden = now.phase !== "sending";
        bar.value = now.fraction;
        find(".error", HTMLElement, upload).textContent = now.error;
      }
    },
  );
  watchValue(context, "name", (name) => {
    choose.hidden = name !== null || context.app.store.state.uploads[context.id]?.phase === "sending";
  });
  watchValue(context, "trigger_word", (value) => write(word, String(value ?? "")));
  body.append(
    upload,
    nameBox,
    make("div", { class: "row" }, choose, again),
    rangeField(context, { name: "weight", label: "Weight" }),
    field(context, { name: "trigger_word", label: "Trigger word", control: word, wide: true }),
    facts,
    misfit,
  );

  /** Why the file cannot act on a model that it is wired to, or "". @param {State} state */
  function whyNot(state) {
    const graph = state.document.graph;
    const name = graph.nodes[context.id]?.values.name;
    for (const { to } of wiresOutOf(graph, context.id)) {
      const node = graph.nodes[to.node];
      const lora = serviceNamed(state, node?.values.service)?.loras.find((each) => each.name === name);
      const model = modelOf(state, node);
      if (lora?.refusal) {
        return `It cannot be applied: ${lora.refusal}.`;
      }
      if (lora?.compatible_models && model && !lora.compatible_models.includes(model.id)) {
        return `It does not fit ${model.title}: it is made for ${lora.base_model ?? "another model"}${lora.compatible_models.length ? ` (${lora.compatible_models.join(", ")})` : ""}.`;
      }
    }
    return "";
  }

  async function fill() {
    const [file] = await chooseFiles({ accept: ".safetensors", many: false });
    if (file) {
      await library.fill(context.id, file);
    }
  }

  /** Of the services that the wire leads to; of all where there is none. @param {State} state @returns {readonly Lora[]} */
  function lorasFor(state) {
    const graph = state.document.graph;
    const names = wiresOutOf(graph, context.id).map(({ to }) => graph.nodes[to.node]?.values.service);
    const lists = names.map((name) => serviceNamed(state, name)?.loras ?? []);
    return lists.find((list) => list.length) ?? Object.values(state.services).find(({ loras }) => loras.length)?.loras ?? NONE;
  }
}

/** The same each time, so that nothing seems to change. @type {readonly Lora[]} */
const NONE = [];

/** @param {Lora} lora */
export function factsOf({ rank, format, base_model, size_bytes }) {
  return [rank === null || rank === undefined ? "" : `rank ${rank}`, format ?? "", base_model ?? "", size_bytes === undefined ? "" : fileSize(size_bytes)].filter(Boolean).join(" · ");
}
