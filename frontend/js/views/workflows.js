/** Workflows: save, open, examples. Named ones are kept in the browser, and nowhere else. */

/** @import { App } from "../../types/app" */

import { button, chooseFiles, find, keep, make } from "../dom.js";
import { moment } from "../format.js";
import { EXAMPLES, firstGraph } from "../graph/starters.js";
import { serialise } from "../graph/workflow.js";
import { firstService } from "../services.js";
import { confirmed } from "./confirm.js";

const PREFIX = "flux workflow ";

/** @param {App} app @param {HTMLElement} panel @param {() => void} onOpened */
export function mountWorkflows(app, panel, onOpened) {
  const { store, editor, opener } = app;
  const name = make("input", { type: "text", maxlength: 100, placeholder: "Name of this workflow", "aria-label": "Name of this workflow" });
  const list = make("ul", { class: "library", id: "saved-workflows" });
  const note = make("p", { class: "hint" });
  const text = () => JSON.stringify(serialise(editor.graph, store.state.workflow), null, 2);
  const form = make("form", { class: "row" }, name, make("button", { class: "quiet", type: "submit" }, "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  const examples = make("ul", { class: "library" });
  for (const { name: title, about, build } of EXAMPLES) {
    examples.append(
      make(
        "li",
        { class: "lora" },
        make("p", { class: "lora-name" }, title),
        make("p", { class: "hint" }, about),
        make("div", { class: "row" }, button({ label: `Open ${title}`, words: "Open", act: () => open(() => editor.replace(build(firstService(store.state)), `open ${title}`, title)) })),
      ),
    );
  }
  panel.append(
    form,
    make(
      "div",
      { class: "row" },
      button({ label: "New", words: "New", icon: "plus", act: () => open(() => editor.replace(firstGraph(firstService(store.state)), "new workflow")) }),
      button({ label: "Open a file", words: "Open a file", icon: "upload", act: () => void openFile() }),
      button({ label: "Save as a file", words: "Save as a file", icon: "download", act: saveFile }),
    ),
    make("h3", {}, "In this browser"),
    note,
    list,
    make("h3", {}, "Examples"),
    examples,
  );
  store.watch(
    ({ workflow }) => [workflow],
    (title) => {
      name.value = title;
    },
  );
  render();

  function save() {
    const title = name.value.trim() || "Untitled";
    store.set({ workflow: title });
    try {
      localStorage.setItem(PREFIX + title, JSON.stringify({ saved: new Date().toISOString(), text: text() }));
      store.say(`${title} is saved in this browser.`);
    } catch {
      store.say("The browser keeps nothing here. Save it as a file.");
    }
    render();
  }

  function saveFile() {
    const url = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    const link = make("a", { href: url, download: `${(store.state.workflow || "workflow").replace(/[^\p{L}\p{N} _-]/gu, "")}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
  }

  async function openFile() {
    await opener.open(await chooseFiles({ accept: ".json,.png", many: false }));
  }

  /** @param {() => void} act */
  function open(act) {
    act();
    onOpened();
  }

  function render() {
    const saved = savedWorkflows();
    note.textContent = saved.length ? "" : "Saved workflows are listed here.";
    keep(list, saved, ({ title }) => title, card, (element, { when, count }) => {
      find(".hint", HTMLElement, element).textContent = `${count} nodes · ${when}`;
    });
  }

  /** @param {{title: string}} saved */
  function card({ title }) {
    const openIt = async () => {
      try {
        await opener.openText(savedWorkflows().find((each) => each.title === title)?.text ?? "", title);
      } catch (error) {
        store.say(`${title} was not opened: ${error instanceof Error ? error.message : error}.`);
      }
    };
    const remove = async () => {
      if (await confirmed(`Delete the workflow ${title} from this browser?`)) {
        localStorage.removeItem(PREFIX + title);
        render();
      }
    };
    return make(
      "li",
      { class: "lora" },
      make("p", { class: "lora-name" }, title),
      make("p", { class: "hint" }),
      make("div", { class: "row" }, button({ label: `Open ${title}`, words: "Open", act: () => void openIt() }), button({ label: `Delete ${title}`, icon: "delete", kind: "bare", act: () => void remove() })),
    );
  }
}

/** @returns {{title: string, when: string, count: number, text: string}[]} */
function savedWorkflows() {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(PREFIX))
      .sort()
      .flatMap((key) => {
        const { saved, text } = JSON.parse(localStorage.getItem(key) ?? "{}");
        return typeof text === "string" ? [{ title: key.slice(PREFIX.length), when: moment(saved), count: JSON.parse(text).nodes.length, text }] : [];
      });
  } catch {
    return []; // storage is off, or holds what another program wrote
  }
}
