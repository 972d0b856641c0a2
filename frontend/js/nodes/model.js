/** The Model node: which service, which of its models. */

/** @import { MountNode } from "../../types/app" */
/** @import { State } from "../../types/state" */

import { keep, make } from "../dom.js";
import { inShort, precision } from "../format.js";
import { modelOf } from "../models.js";
import { servicesOf, serviceNamed } from "../services.js";
import { field, segments, watchValue } from "./fields.js";

/** @type {MountNode} */
export function mountModel(body, context) {
  const { store } = context.app;
  const services = segments(context, {
    name: "service",
    label: "Service",
    choices: servicesOf(store.state).map(({ name }) => ({ value: name, words: precision(name) })),
    onChoose: (service) => context.set({ service, backend: null, model: null }),
  });
  const backend = make("select");
  const model = make("select");
  backend.addEventListener("change", () => context.set({ backend: backend.value || null, model: null }));
  model.addEventListener("change", () => context.set({ model: model.value || null }));
  const why = make("p", { class: "hint" });
  const about = make("p", { class: "hint about" });
  const backendBox = field(context, { name: "backend", label: "Backend", control: backend, wide: true });

  context.watch(
    (state) => [serviceOf(state), context.node().values],
    (service, values) => {
      const models = service?.models ?? [];
      const backends = [...new Set(models.map((each) => each.backend))];
      backendBox.hidden = backends.length < 2;
      keep(backend, ["", ...backends], String, (value) => make("option", { value }, value || "any"));
      backend.value = String(values.backend ?? "");
      const offered = models.filter((each) => !values.backend || each.backend === values.backend);
      const standard = models.find(({ is_default }) => is_default);
      keep(model, [{ id: "", title: standard ? `${standard.title} (default)` : "the service’s default", available: true }, ...offered], ({ id }) => id, ({ id }) => make("option", { value: id }), (option, { title, available }) => {
        option.textContent = available ? title : `${title} (cannot run here)`;
        option.disabled = !available;
      });
      if (values.model && !offered.some(({ id }) => id === values.model)) {
        model.append(make("option", { value: String(values.model), "data-key": String(values.model) }, `${values.model} (not here)`));
      }
      model.value = String(values.model ?? "");
    },
  );
  context.watch(
    (state) => [serviceOf(state), modelOf(state, context.node())],
    (service, chosen) => {
      why.textContent = wordsOf(service, chosen?.is_default ? inShort(service?.info?.default_model_reason ?? "") : "");
      about.textContent = service?.phase === "ready" ? (chosen?.description ?? "") : "";
      about.title = about.textContent;
    },
  );
  watchValue(context, "service", (name) => services.setAttribute("data-service", String(name)));
  for (const { name } of servicesOf(store.state)) {
    context.watch(
      (state) => [state.services[name]?.phase],
      (phase) => services.querySelector(`[value=${name}] + span`)?.setAttribute("data-phase", phase ?? ""),
    );
  }
  body.append(
    field(context, { name: "service", label: "Service", control: services, wide: true }),
    backendBox,
    field(context, { name: "model", label: "Model", control: model, wide: true, errors: ["model", "loras"] }),
    why,
    about,
  );

  /** @param {State} state */
  function serviceOf(state) {
    return serviceNamed(state, state.document.graph.nodes[context.id]?.values.service);
  }
}

/** @param {import("../../types/state").ServiceState | null} service @param {string} reason */
function wordsOf(service, reason) {
  if (!service) {
    return "This page knows no such service.";
  }
  const words = {
    connecting: "Connecting …",
    down: "It does not answer. Runs wait until it does.",
    locked: "It needs a key.",
    waiting: `It cannot draw now: ${service.reason}`,
    ready: reason && `${reason[0]?.toUpperCase()}${reason.slice(1)}.`.replace(/\.\.$/, "."),
  };
  return words[service.phase];
}
