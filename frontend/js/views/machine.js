/** The machine: one line per GPU, what is loaded, how the services are. */

/** @import { App } from "../../types/app" */
/** @import { GpuEvent, Model } from "../../types/api" */
/** @import { ServiceState } from "../../types/state" */

import { button, find, keep, make } from "../dom.js";
import { modelTitle, precision } from "../format.js";
import { isReachable } from "../connection.js";
import { servicesOf } from "../services.js";
import { describe } from "./topbar.js";

/** @param {App} app @param {HTMLElement} panel */
export function mountMachine(app, panel) {
  const { store, connections } = app;
  /** Services that load or unload now. @type {Set<string>} */
  const busy = new Set();
  const render = () => keep(panel, servicesOf(store.state), ({ name }) => name, block, updateBlock);
  store.watch(
    ({ services }) => [services],
    () => render(),
  );

  /** @param {ServiceState} service */
  function block({ name, address }) {
    const select = make("select", { "aria-label": `Model to load on ${precision(name)}` });
    const load = button({ label: "Load", words: "Load", kind: "quiet load", act: () => void change("load", select.value) });
    const unload = button({ label: "Unload", words: "Unload", kind: "quiet unload", act: () => void change("unload", "") });
    const key = button({ label: "Enter the key", words: "Enter the key", kind: "quiet key", act: () => store.set({ keyAsked: name }) });
    return make(
      "section",
      { class: "block", "data-service": name },
      make("header", {}, make("span", { class: "dot" }), make("h3", {}, precision(name)), make("p", { class: "hint address" }, address.replace("http://", ""))),
      make("p", { class: "health" }),
      make("ul", { class: "devices" }),
      make("p", { class: "hint about" }),
      make("div", { class: "row load-row" }, select, load, unload, key),
    );

    /** @param {"load" | "unload"} what @param {string} model */
    async function change(what, model) {
      busy.add(name);
      render();
      try {
        await connections[name]?.ask((client) => (what === "load" ? client.loadModel(model) : client.unloadModel()));
        store.say(what === "load" ? `${modelTitle(model, store.state.services[name]?.models ?? [])} is loaded.` : "Unloaded.");
      } catch (error) {
        store.say(error instanceof Error ? error.message : String(error));
      } finally {
        busy.delete(name);
        render();
      }
    }
  }

  /** @param {HTMLElement} element @param {ServiceState} service */
  function updateBlock(element, service) {
    element.dataset.phase = service.phase;
    const words = describe(service);
    find(".health", HTMLElement, element).textContent = `${words[0]?.toUpperCase()}${words.slice(1)}`;
    const usable = service.models.filter(({ available }) => available);
    const select = find("select", HTMLSelectElement, element);
    const chosen = select.value;
    keep(select, usable, ({ id }) => id, ({ id, title }) => make("option", { value: id }, title));
    select.value = chosen || (service.info?.default_model ?? "");
    const isUp = isReachable(service);
    const isBusy = busy.has(service.name);
    find(".load", HTMLButtonElement, element).disabled = isBusy || !usable.length;
    find(".unload", HTMLButtonElement, element).disabled = isBusy || !service.gpus.some(({ model }) => model);
    find(".key", HTMLElement, element).hidden = service.phase !== "locked";
    for (const part of ["select", ".load", ".unload"]) {
      find(part, HTMLElement, element).hidden = !isUp;
    }
    const model = service.models.find(({ is_default }) => is_default);
    find(".about", HTMLElement, element).textContent = isUp ? aboutOf(service, model) : "";
    keep(find(".devices", HTMLElement, element), isUp ? service.gpus : [], ({ worker }) => worker, device, (row, gpu) => updateDevice(row, gpu, service));
  }
}

/** @param {ServiceState} service @param {Model | undefined} model */
function aboutOf({ info }, model) {
  return model && info ? `Draws with ${model.title} unless asked otherwise: ${info.default_model_reason}.` : "";
}

/** @param {GpuEvent} gpu */
function device({ worker }) {
  return make("li", {}, make("p", { class: "device-name" }), make("p", { class: "hint device-model" }), make("meter", { min: 0, max: 1, "aria-label": `Memory of ${worker}` }), make("p", { class: "hint device-memory" }));
}

/** @param {HTMLElement} row @param {GpuEvent} gpu @param {ServiceState} service */
function updateDevice(row, { worker, cards, model, memory_mib, state }, service) {
  const card = cards[0];
  find(".device-name", HTMLElement, row).textContent = card ? cards.map(({ index, name }) => `GPU ${index}: ${name}`).join(" + ") : `CPU (worker ${worker})`;
  find(".device-model", HTMLElement, row).textContent = `${model ? modelTitle(model, service.models) : "no model loaded"} · ${state}`;
  const total = cards.reduce((sum, { memory_total_mib }) => sum + memory_total_mib, 0);
  const used = cards.reduce((sum, { memory_used_mib }) => sum + (memory_used_mib ?? 0), 0) || (memory_mib ?? 0);
  const bar = find("meter", HTMLMeterElement, row);
  bar.hidden = !total;
  bar.value = total ? used / total : 0;
  const load = card?.utilization_percent;
  find(".device-memory", HTMLElement, row).textContent = [
    used ? `${(used / 1024).toFixed(1)}${total ? ` of ${(total / 1024).toFixed(0)}` : ""} GiB` : "",
    load === null || load === undefined ? "" : `${load} % busy`,
  ].filter(Boolean).join(" · ");
}
