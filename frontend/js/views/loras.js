/** The library: LoRAs of both services, to search, use, rename, delete. */

/** @import { App } from "../../types/app" */
/** @import { LoraInList as Lora } from "../../types/api" */
/** @import { ServiceName, State } from "../../types/state" */

import { button, chooseFiles, find, keep, make } from "../dom.js";
import { precision } from "../format.js";
import { factsOf } from "../nodes/lora.js";
import { servicesOf } from "../services.js";
import { confirmed } from "./confirm.js";

/** @typedef {{lora: Lora, services: ServiceName[]}} Entry */

/** @param {App} app @param {HTMLElement} panel */
export function mountLoras(app, panel) {
  const { store, library } = app;
  const search = make("input", { type: "search", placeholder: "Search LoRAs", "aria-label": "Search LoRAs" });
  const add = button({ label: "Add files", words: "Add files", icon: "upload", act: () => void choose() });
  const list = make("ul", { class: "library" });
  const note = make("p", { class: "hint empty" });
  panel.append(make("div", { class: "row apart" }, search, add), note, list);
  /** The one whose name is being changed. */
  let edited = "";

  const render = () => {
    const words = search.value.trim().toLowerCase();
    const all = entriesOf(store.state);
    const found = all.filter(({ lora }) => [lora.name, lora.format ?? "", lora.base_model ?? "", ...(lora.trigger_words ?? [])].join(" ").toLowerCase().includes(words));
    keep(list, found, ({ lora }) => lora.name, card, updateCard);
    const errors = servicesOf(store.state).flatMap(({ name, lorasError }) => (lorasError ? [`${precision(name)}: ${lorasError}`] : []));
    note.textContent = errors.length && !all.length ? errors.join(" ") : all.length ? (found.length ? "" : "Nothing has these words.") : "Drop .safetensors files anywhere on this page. They are kept here, and each gets a node.";
    note.hidden = !note.textContent;
  };
  search.addEventListener("input", render);
  store.watch(
    ({ services }) => [services],
    () => render(),
  );

  async function choose() {
    const files = await chooseFiles({ accept: ".safetensors", many: true });
    if (files.length) {
      await library.add(files);
    }
  }

  /** @param {Entry} entry */
  function card({ lora: { name } }) {
    const now = () => entriesOf(store.state).find(({ lora }) => lora.name === name);
    const form = make("form", { class: "edit", hidden: true });
    const element = make(
      "li",
      { class: "lora" },
      make("p", { class: "lora-name" }, name),
      make("p", { class: "hint lora-facts" }),
      make("p", { class: "hint lora-words" }),
      make("p", { class: "hint lora-fits" }),
      make(
        "div",
        { class: "row lora-actions" },
        button({ label: `Use ${name}`, words: "Use", icon: "plus", act: () => void library.use(now()?.lora ?? { name }) }),
        button({ label: `Edit ${name}`, words: "Edit", kind: "quiet lora-edit", act: () => edit() }),
        button({ label: `Delete ${name}`, icon: "delete", kind: "bare lora-delete", act: () => void remove() }),
      ),
      form,
    );
    return element;

    function edit() {
      const entry = now();
      edited = edited === name ? "" : name;
      form.hidden = edited !== name;
      if (!entry || form.hidden) {
        return;
      }
      const rename = make("input", { type: "text", value: name, maxlength: 100, "aria-label": "Name" });
      const words = make("input", { type: "text", value: (entry.lora.trigger_words ?? []).join(", "), "aria-label": "Trigger words, separated by commas" });
      const error = make("p", { class: "error", role: "alert" });
      form.replaceChildren(make("label", {}, "Name", rename), make("label", {}, "Trigger words", words), error, make("button", { class: "quiet", type: "submit" }, "Save"));
      form.onsubmit = async (event) => {
        event.preventDefault();
        const trigger_words = words.value.split(",").map((word) => word.trim()).filter(Boolean);
        const changes = { ...(rename.value.trim() === name ? {} : { name: rename.value.trim() }), trigger_words };
        for (const service of entry.services) {
          // Services that share a folder know the new name already.
          const isThere = store.state.services[service]?.loras.some((each) => each.name === name);
          error.textContent = isThere ? await library.change(service, entry.lora, changes) : "";
          if (error.textContent) {
            return;
          }
          await Promise.all(entry.services.map((each) => library.refresh(each)));
        }
        edited = "";
        form.hidden = true;
      };
      rename.focus();
    }

    async function remove() {
      const entry = now();
      if (entry && (await confirmed(`Delete the LoRA ${name}? Its file goes with it, for good.`))) {
        for (const service of entry.services) {
          if (store.state.services[service]?.loras.some((each) => each.name === name)) {
            await library.delete(service, entry.lora);
          }
          await Promise.all(entry.services.map((each) => library.refresh(each)));
        }
      }
    }
  }

  /** @param {HTMLElement} element @param {Entry} entry */
  function updateCard(element, { lora, services }) {
    find(".lora-facts", HTMLElement, element).textContent = `${factsOf(lora)} · ${services.map(precision).join(", ")}`;
    find(".lora-words", HTMLElement, element).textContent = lora.trigger_words?.length ? `Trigger words: ${lora.trigger_words.join(", ")}` : "";
    find(".lora-fits", HTMLElement, element).textContent = lora.refusal ? `Cannot be applied: ${lora.refusal}` : lora.compatible_models?.length ? `Fits ${lora.compatible_models.join(", ")}` : lora.compatible_models ? "Fits no model here" : "On its way";
    find(".lora-edit", HTMLElement, element).hidden = find(".lora-delete", HTMLElement, element).hidden = Boolean(lora.builtin) || !lora.compatible_models;
  }
}

/** @param {State} state @returns {Entry[]} */
function entriesOf(state) {
  /** @type {Map<string, Entry>} */
  const entries = new Map();
  for (const { name: service, loras } of servicesOf(state)) {
    for (const lora of loras) {
      const entry = entries.get(lora.name) ?? { lora, services: [] };
      entry.services.push(service);
      entries.set(lora.name, entry);
    }
  }
  return [...entries.values()].sort((a, b) => a.lora.name.localeCompare(b.lora.name));
}
