/** Puts the page together. */

import { Api, ApiError } from "./api.js";
import { serviceUrl } from "./config.js";
import { find } from "./dom.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { showResult } from "./result.js";
import { Runs } from "./runs.js";
import { Store } from "./store.js";

const RETRY_MS = 1500;

const api = new Api(serviceUrl(location));
const store = new Store();
const form = new Form((body) => runs.submit(body));
const use = (/** @type {Record<string, any>} */ values) => form.take(values);
const gallery = new Gallery(api, store, use);
const runs = new Runs(api, store, { finished: () => gallery.refresh(), down: (error) => notice(error.message), up: () => notice("") });

/** @param {string} text */
function notice(text) {
  const shown = text && `${text} Trying again; nothing is lost.`;
  if (shown !== store.state.notice) store.set({ notice: shown });
}

/** @type {any} */
let shownResult = null;
store.subscribe(({ result, notice: text }) => {
  const place = find("notice", HTMLElement);
  place.textContent = text;
  place.hidden = !text;
  if (result && result !== shownResult) {
    shownResult = result;
    showResult(api, result, use);
  }
});

/** Learn what the service is; until it answers, ask again. */
async function connect() {
  try {
    const [info, models] = await Promise.all([api.get("/info"), api.get("/api/models")]);
    const chosen = models.models.find((/** @type {any} */ model) => model.id === info.default_model);
    find("service-line", HTMLElement).textContent = `${info.precision.toUpperCase()} service on ${info.devices[0].name}`;
    find("model-line", HTMLElement).textContent =
      `${chosen.title} draws: ${info.default_model_reason}. ${chosen.description}`;
    form.showModels(models.models, info.default_model);
    notice("");
    await gallery.refresh();
    watch();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) return askForKey();
    notice(error.message);
    setTimeout(connect, RETRY_MS);
  }
}

/** Notice that the service went away, also while nothing runs. */
async function watch() {
  try {
    await api.get("/health/live");
    setTimeout(watch, document.hidden ? 10 * RETRY_MS : 2 * RETRY_MS);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice(error.message);
    setTimeout(connect, RETRY_MS);
  }
}

function askForKey() {
  const dialog = find("key-dialog", HTMLDialogElement);
  find("key-form", HTMLFormElement).onsubmit = () => {
    api.setKey(find("key", HTMLInputElement).value);
    connect();
  };
  dialog.showModal();
}

connect();
