/** The settings: values with the model's defaults and limits. */

/** @import { Model } from "../../types/api" */
/** @import { Draft, DraftNumber, ServiceState } from "../../types/state" */
/** @import { Store } from "../store.js" */

import { find, keep, make } from "../dom.js";
import { inShort } from "../format.js";
import { modelOf, newSeed, valueOf } from "../request.js";
import { presets } from "../sizes.js";

/** @type {readonly DraftNumber[]} */
const NUMBERS = [
  "width",
  "height",
  "num_inference_steps",
  "num_images",
  "true_cfg_scale",
  "guidance_scale",
];

/** @param {Store} store */
export function mountSettings(store) {
  mountModel(store);
  mountShapes(store);
  mountNumbers(store);
  mountSeed(store);
  mountNegativePrompt(store);
  mountFormat(store);
  mountSummary(store);
  find("#reset", HTMLButtonElement).addEventListener("click", () => {
    store.setDraft({ ...defaults(), model: null, num_images: null, seed_mode: "random" });
    store.set({ fieldErrors: {}, formError: "" });
  });
}

/** The name of a field that holds something which is no number, or undefined. */
export function numberAtFault() {
  return [...NUMBERS, "seed"].find((name) => find(`#${name}`, HTMLInputElement).validity.badInput);
}

/** What belongs to a model and starts afresh with another one. @returns {Partial<Draft>} */
function defaults() {
  return {
    width: null,
    height: null,
    num_inference_steps: null,
    true_cfg_scale: null,
    guidance_scale: null,
  };
}

/** @param {Store} store */
function mountModel(store) {
  const select = find("#model", HTMLSelectElement);
  const hints = find("#model-hints", HTMLElement);
  select.addEventListener("change", () => {
    const { info } = store.state.service;
    const model = select.value === info?.default_model ? null : select.value;
    store.setDraft({ ...defaults(), model });
  });
  store.watch(
    ({ service, draft }) => [service.models, service.info, draft.model],
    (models, info, wanted) => {
      keep(select, models, ({ id }) => id, option, describe);
      select.value = wanted ?? info?.default_model ?? "";
      const reasons = models.flatMap(({ title, is_default, reason }) => {
        const why = is_default ? `the default: ${info?.default_model_reason}` : inShort(reason ?? "");
        return why ? [{ title, why }] : [];
      });
      keep(hints, reasons, ({ title }) => title, () => make("li"), (item, { title, why }) => {
        item.replaceChildren(make("strong", {}, title), `: ${why}`);
      });
    },
  );

  /** @param {Model} model */
  function option({ id }) {
    return make("option", { value: id });
  }

  /** @param {HTMLOptionElement} element @param {Model} model */
  function describe(element, { title, available }) {
    element.textContent = available ? title : `${title} (cannot run here)`;
    element.disabled = !available;
  }
}

/** @param {Store} store */
function mountShapes(store) {
  const chips = find("#shapes", HTMLElement);
  store.watch(
    ({ service, draft }) => [modelOf(draft, service), draft],
    (model, draft) => {
      const now = model && { width: valueOf(draft, "width", model), height: valueOf(draft, "height", model) };
      keep(
        chips,
        model ? presets(model) : [],
        ({ name, width, height }) => `${name} ${width} ${height}`,
        chip,
        (button, { width, height }) => {
          const isOn = now?.width === String(width) && now.height === String(height);
          button.setAttribute("aria-pressed", String(isOn));
        },
      );
    },
  );
  find("#swap", HTMLButtonElement).addEventListener("click", () => {
    const { draft, service } = store.state;
    const model = modelOf(draft, service);
    store.setDraft({ width: valueOf(draft, "height", model), height: valueOf(draft, "width", model) });
  });

  /** @param {import("../sizes.js").Size} size */
  function chip({ name, width, height }) {
    const button = make(
      "button",
      { class: "chip", type: "button" },
      make("span", {}, name),
      make("small", {}, `${width} × ${height}`),
    );
    button.addEventListener("click", () =>
      store.setDraft({ width: String(width), height: String(height) }),
    );
    return button;
  }
}

/** @param {Store} store */
function mountNumbers(store) {
  for (const name of NUMBERS) {
    const input = find(`#${name}`, HTMLInputElement);
    input.addEventListener("input", () => store.setDraft({ [name]: input.value }));
    input.addEventListener("change", () => {
      if (!input.value && !input.validity.badInput) {
        store.setDraft({ [name]: null }); // emptied: the model's default again
      }
    });
  }
  store.watch(
    ({ service, draft }) => [modelOf(draft, service), draft],
    (model, draft) => {
      for (const name of NUMBERS) {
        write(find(`#${name}`, HTMLInputElement), valueOf(draft, name, model));
      }
    },
  );
  store.watch(
    ({ service, draft }) => [modelOf(draft, service)],
    (model) => {
      for (const side of ["#width", "#height"]) {
        const input = find(side, HTMLInputElement);
        input.min = String(model?.limits.min_size ?? "");
        input.max = String(model?.limits.max_size ?? "");
        input.step = String(model?.limits.size_multiple ?? 1);
      }
      find("#guidance", HTMLElement).hidden = !model?.uses_guidance_scale;
    },
  );
}

/** @param {Store} store */
function mountSeed(store) {
  const seed = find("#seed", HTMLInputElement);
  const random = find("input[name=seed_mode][value=random]", HTMLInputElement);
  const fixed = find("input[name=seed_mode][value=fixed]", HTMLInputElement);
  random.addEventListener("change", () => store.setDraft({ seed_mode: "random" }));
  fixed.addEventListener("change", () => {
    const { draft, shown } = store.state;
    const last = shown?.job.result?.images[shown.index]?.seed;
    store.setDraft({ seed_mode: "fixed", seed: draft.seed || String(last ?? newSeed()) });
  });
  seed.addEventListener("input", () => store.setDraft({ seed: seed.value }));
  store.watch(
    ({ draft }) => [draft.seed_mode, draft.seed],
    (mode, text) => {
      fixed.checked = mode === "fixed";
      random.checked = !fixed.checked;
      seed.disabled = random.checked;
      write(seed, fixed.checked ? text : "");
    },
  );
}

/** @param {Store} store */
function mountNegativePrompt(store) {
  const text = find("#negative_prompt", HTMLTextAreaElement);
  const scale = find("#true_cfg_scale", HTMLInputElement);
  text.addEventListener("input", () => store.setDraft({ negative_prompt: text.value }));
  store.watch(
    ({ draft }) => [draft.negative_prompt],
    (negative) => {
      write(text, negative);
      scale.disabled = !negative.trim();
    },
  );
}

/** @param {Store} store */
function mountFormat(store) {
  const select = find("#output_format", HTMLSelectElement);
  select.addEventListener("change", () => store.setDraft({ output_format: select.value }));
  store.watch(
    ({ service, draft }) => [service.info, draft.output_format],
    (info, format) => {
      const formats = info?.output_formats ?? ["png"];
      keep(select, formats, String, (name) => make("option", { value: name }, name.toUpperCase()));
      select.value = format;
    },
  );
}

/** @param {Store} store */
function mountSummary(store) {
  const line = find("#settings-summary", HTMLElement);
  store.watch(
    ({ service, draft }) => [service, draft],
    (service, draft) => {
      line.textContent = summary(draft, service);
    },
  );
}

/** @param {Draft} draft @param {ServiceState} service */
function summary(draft, service) {
  const model = modelOf(draft, service);
  if (!model) {
    return "";
  }
  const count = valueOf(draft, "num_images", model);
  const parts = [
    `${valueOf(draft, "width", model)} × ${valueOf(draft, "height", model)}`,
    `${valueOf(draft, "num_inference_steps", model)} steps`,
    draft.seed_mode === "fixed" ? `seed ${draft.seed}` : "random seed",
    count === "1" ? "" : `${count} pictures`,
    draft.negative_prompt.trim() && "negative prompt",
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Writing the same value again would move the caret. @param {HTMLInputElement | HTMLTextAreaElement} field @param {string} text */
function write(field, text) {
  if (field.value !== text && !(field.validity.badInput && document.activeElement === field)) {
    field.value = text;
  }
}
