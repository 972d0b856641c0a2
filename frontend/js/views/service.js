/** What draws, in the corner; the notice when it cannot; the question for a key. */

/** @import { Info } from "../../types/api" */
/** @import { ServiceState } from "../../types/state" */
/** @import { Connection } from "../connection.js" */
/** @import { Store } from "../store.js" */

import { find } from "../dom.js";
import { precision } from "../format.js";

/** The header tells. @param {Store} store */
export function mountServiceLine(store) {
  const line = find("#service", HTMLElement);
  const text = find("#service-text", HTMLElement);
  store.watch(
    ({ service }) => [service],
    ({ phase, info }) => {
      line.dataset.phase = phase;
      const words = {
        connecting: "Connecting",
        ready: info ? machine(info) : "Ready",
        waiting: "Not ready",
        down: "No answer",
        locked: "Needs a key",
      };
      text.textContent = words[phase];
    },
  );
}

/** @param {Info} info */
function machine({ precision: name, devices }) {
  const names = devices.map((device) => device.name);
  const first = names[0] ?? "";
  return [precision(name), names.length > 1 ? `${names.length} × ${first}` : first]
    .filter(Boolean)
    .join(" · ");
}

/**
 * @param {Store} store
 * @param {string} address
 * @param {string} refused an address that was asked for and not taken, or ""
 */
export function mountNotice(store, address, refused) {
  const bar = find("#notice", HTMLElement);
  const title = find("#notice-title", HTMLElement);
  const text = find("#notice-text", HTMLElement);
  const enter = find("#notice-key", HTMLButtonElement);
  enter.addEventListener("click", () => store.set({ isKeyAsked: true }));
  store.watch(
    ({ service, isKeyAsked }) => [service.phase, service.reason, isKeyAsked],
    (phase, reason, isKeyAsked) => {
      const words = isKeyAsked ? null : noticeOf({ phase, reason }, address, refused);
      bar.hidden = words === null;
      bar.dataset.phase = phase;
      enter.hidden = phase !== "locked";
      // Set only when they change: an alert is read out each time it is written.
      if (words && `${title.textContent}${text.textContent}` !== words.join("")) {
        [title.textContent, text.textContent] = words;
      }
    },
  );
}

/**
 * @param {Pick<ServiceState, "phase" | "reason">} service
 * @param {string} address
 * @param {string} refused
 * @returns {[string, string] | null}
 */
function noticeOf({ phase, reason }, address, refused) {
  if (phase === "down") {
    const why = reason ? ` It said: ${reason}.` : "";
    const origin =
      address === location.origin ? "" : ` If it runs, FLUX_PAGE_ORIGINS must hold ${location.origin}.`;
    return [
      `The service at ${address} does not answer.`,
      `Trying again every second; nothing you typed is lost.${why}${origin}`,
    ];
  }
  if (phase === "waiting") {
    return ["The service cannot draw now.", `It says: ${reason}.`];
  }
  if (phase === "locked") {
    return ["This service needs a key.", "Nothing you typed is lost."];
  }
  if (refused && phase === "ready") {
    return [`The address ${refused} was not taken.`, `Only services on this machine are; this is ${address}.`];
  }
  return null;
}

/** @param {Store} store @param {Connection} connection @param {string} address */
export function mountKeyDialog(store, connection, address) {
  const dialog = find("#key-dialog", HTMLDialogElement);
  const field = find("#key", HTMLInputElement);
  const error = find("#key-error", HTMLElement);
  find("#key-address", HTMLElement).textContent = address;
  find("#key-form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (/^[\x21-\x7e]+$/.test(key)) {
      field.value = "";
      connection.useKey(key);
    } else {
      store.set({ keyError: key ? "A key has letters, digits and signs without spaces." : "Enter the key." });
    }
  });
  dialog.addEventListener("close", () => store.set({ isKeyAsked: false }));
  store.watch(
    ({ isKeyAsked, keyError }) => [isKeyAsked, keyError],
    (isKeyAsked, keyError) => {
      error.textContent = keyError;
      error.hidden = !keyError;
      field.setAttribute("aria-invalid", String(Boolean(keyError)));
      if (isKeyAsked && !dialog.open) {
        dialog.showModal();
        field.focus();
      } else if (!isKeyAsked && dialog.open) {
        dialog.close();
      }
    },
  );
}
