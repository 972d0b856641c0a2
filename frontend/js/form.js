/** The form: what is asked for, within what the chosen model takes. */

import { ApiError } from "./api.js";
import { find, make } from "./dom.js";

const NUMBERS = ["width", "height", "num_inference_steps", "num_images", "seed", "guidance_scale", "true_cfg_scale"];
const TEXTS = ["negative_prompt", "model", "output_format"];
const PRESETS = [[1, 1], [3, 2], [2, 3], [16, 9], [9, 16]];

export class Form {
  /** @param {(body: object) => Promise<void>} submit */
  constructor(submit) {
    this.submit = submit;
    this.form = find("form", HTMLFormElement);
    this.prompt = find("prompt", HTMLTextAreaElement);
    this.model = find("model", HTMLSelectElement);
    this.preset = find("preset", HTMLSelectElement);
    /** @type {any[]} */
    this.models = [];
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.run();
      }
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
    });
    this.model.addEventListener("change", () => this.applyModel());
    this.preset.addEventListener("change", () => {
      const [width, height] = this.preset.value.split("x");
      if (height) Object.assign(this.input("width"), { value: width }) && (this.input("height").value = height);
    });
  }

  /** @param {any[]} models @param {string} defaultModel */
  showModels(models, defaultModel) {
    this.models = models;
    const chosen = this.model.value || defaultModel;
    this.model.replaceChildren(
      ...models.map((model) =>
        make(
          "option",
          { value: model.id, disabled: !model.available, title: model.reason ?? "" },
          model.available ? model.title : `${model.title} (not on this machine)`,
        ),
      ),
    );
    this.model.value = chosen;
    this.applyModel();
  }

  applyModel() {
    const model = this.models.find(({ id }) => id === this.model.value);
    if (!model) return;
    const { defaults, limits } = model;
    for (const side of ["width", "height"]) {
      Object.assign(this.input(side), { min: limits.min_size, max: limits.max_size, placeholder: defaults[side] });
    }
    this.input("num_inference_steps").placeholder = defaults.num_inference_steps;
    this.input("true_cfg_scale").placeholder = defaults.true_cfg_scale;
    this.input("guidance_scale").placeholder = defaults.guidance_scale;
    find("guidance-label", HTMLElement).hidden = !model.uses_guidance_scale;
    this.preset.replaceChildren(
      make("option", { value: "" }, "choose …"),
      ...PRESETS.map(([across, down]) => presetOption(across, down, defaults, limits)),
    );
    find("examples", HTMLElement).replaceChildren(
      ...model.example_prompts.map((/** @type {string} */ text) =>
        make("button", { type: "button", onclick: () => this.take({ prompt: text }) }, text),
      ),
    );
  }

  /** Put values into the form, as from a picture. @param {Record<string, any>} values */
  take(values) {
    for (const [name, value] of Object.entries(values)) {
      if (name === "prompt") this.prompt.value = value;
      else if (this.form.elements.namedItem(name)) this.input(name).value = value ?? "";
    }
    this.prompt.focus();
  }

  async run() {
    this.showErrors([]);
    try {
      await this.submit(this.body());
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.showErrors(error.fields.length ? error.fields : [{ field: "body", message: error.message }]);
    }
  }

  /** What the form asks for; what was left empty is the model's to decide. */
  body() {
    /** @type {Record<string, unknown>} */
    const body = { prompt: this.prompt.value };
    for (const name of TEXTS) if (this.input(name).value) body[name] = this.input(name).value;
    for (const name of NUMBERS) if (this.input(name).value !== "") body[name] = Number(this.input(name).value);
    return body;
  }

  /** @param {{field: string, message: string}[]} errors */
  showErrors(errors) {
    /** @type {Map<string, string>} */
    const byField = new Map(errors.map(({ field, message }) => [field, message]));
    for (const place of this.form.querySelectorAll("[data-error]")) {
      const field = place.getAttribute("data-error") ?? "";
      place.textContent = byField.has(field) ? `${field === "body" ? "" : `${field}: `}${byField.get(field)}` : "";
      byField.delete(field);
      const input = this.form.elements.namedItem(field);
      if (input instanceof HTMLElement) input.setAttribute("aria-invalid", String(place.textContent !== ""));
      if (place.textContent && place.closest("details")) find("settings", HTMLDetailsElement).open = true;
    }
    const body = this.form.querySelector('[data-error="body"]');
    if (body && byField.size) body.textContent = [...byField].map(([field, message]) => `${field}: ${message}`).join("; ");
  }

  /** @param {string} name @returns {HTMLInputElement} */
  input(name) {
    return /** @type {HTMLInputElement} */ (this.form.elements.namedItem(name));
  }
}

/**
 * A size of this shape with about the default's area, in whole multiples within the limits.
 * @param {number} across @param {number} down @param {any} defaults @param {any} limits
 */
function presetOption(across, down, defaults, limits) {
  const side = Math.sqrt((defaults.width * defaults.height) / (across * down));
  const fit = (/** @type {number} */ length) =>
    Math.min(limits.max_size, Math.max(limits.min_size, Math.round(length / limits.size_multiple) * limits.size_multiple));
  const [width, height] = [fit(side * across), fit(side * down)];
  return make("option", { value: `${width}x${height}` }, `${across}:${down} (${width} × ${height})`);
}
