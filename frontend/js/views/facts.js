/** What a picture is, and what can be done with it: the same on the stage and in the viewer. */

/** @import { GenerationRequest } from "../../types/api" */
/** @import { Connection } from "../connection.js" */
/** @import { Store } from "../store.js" */

import { icon, keep, make } from "../dom.js";
import { download, offer } from "../pictures.js";
import { draftOf } from "../request.js";

/**
 * @typedef {object} Picture what both kinds of pictures have
 * @property {string} filename
 * @property {string} download_url
 * @property {number} seed
 * @property {GenerationRequest} request
 */

/** @param {Element} list @param {readonly [string, string][]} facts */
export function showFacts(list, facts) {
  keep(
    list,
    facts,
    ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    (row, [, value]) => {
      const cell = row.lastElementChild;
      if (cell && cell.textContent !== value) {
        cell.textContent = value;
      }
    },
  );
}

/**
 * Buttons for one picture at a time. `choose` returns the picture they act on.
 * @param {HTMLElement} row
 * @param {{store: Store, connection: Connection, choose: () => Picture | null, onUsed?: () => void}} options
 * @returns {(picture: Picture) => void} call it when the picture is another one
 */
export function mountActions(row, { store, connection, choose, onUsed = () => {} }) {
  const link = make("a", { class: "quiet" }, icon("download"), "Download");
  link.addEventListener("click", (event) => {
    download(event, connection).catch(() => store.say("Not downloaded: the service did not send it."));
  });
  row.replaceChildren(
    link,
    action("seed", "Use this seed", ({ seed }) => {
      store.setDraft({ seed_mode: "fixed", seed: String(seed) });
      store.say(`Seed ${seed} is set.`);
      onUsed();
    }),
    action("settings", "Use all settings", ({ request, seed }) => {
      store.setDraft(draftOf(request, seed));
      store.say("Prompt, seed and settings are set.");
      onUsed();
    }),
    action("copy", "Copy prompt", async ({ request }) => {
      store.say((await copy(request.prompt)) ? "Copied." : "The browser did not allow copying.");
    }),
  );
  return (picture) => offer(link, picture, connection);

  /** @param {string} image @param {string} label @param {(picture: Picture) => void} act */
  function action(image, label, act) {
    const button = make("button", { class: "quiet", type: "button" }, icon(image), label);
    button.addEventListener("click", () => {
      const picture = choose();
      if (picture) {
        act(picture);
      }
    });
    return button;
  }
}

/** `navigator.clipboard` is missing on pages served without TLS by name. @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

/** @param {string} text */
function copyBySelection(text) {
  const before = document.activeElement;
  const field = make("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  if (before instanceof HTMLElement) {
    before.focus();
  }
  return isDone;
}
