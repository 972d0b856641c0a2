/** Fields of nodes: each shows a value of its node, edits it, and has the service's words about it below. */

/** @import { NodeContext } from "../../types/app" */
/** @import { ValueSpec } from "../../types/graph" */

import { make, newId } from "../dom.js";
import { NODE_TYPES } from "../graph/table.js";

/** Pointer travel for one step of a number, px. */
const STEP_PX = 6;

/**
 * @param {NodeContext} context
 * @param {{name: string, label: string, control: HTMLElement, errors?: string[], wide?: boolean, scrub?: (steps: number) => void}} options
 * `errors`: the request's fields whose faults stand here
 */
export function field(context, { name, label, control, errors = [name], wide = false, scrub }) {
  const id = newId();
  const input = control.matches("input, textarea, select") ? control : control.querySelector("input:not([type=radio]), textarea, select");
  const words = make("label", { class: scrub ? "scrub" : "" }, label);
  const error = make("p", { class: "error", id: `${id}-error`, hidden: true });
  if (input) {
    input.id = id;
    words.htmlFor = id;
    input.setAttribute("aria-describedby", error.id);
  }
  if (scrub) {
    makeScrubbable(words, scrub, context);
  }
  const box = make("div", { class: wide ? "field wide" : "field", "data-field": name }, words, control, error);
  context.watch(
    ({ faults }) => errors.map((field) => faults[context.id]?.[field] ?? ""),
    (...messages) => {
      const text = messages.find(Boolean) ?? "";
      error.textContent = text;
      error.hidden = !text;
      input?.setAttribute("aria-invalid", String(Boolean(text)));
      if (text && input instanceof HTMLElement && document.activeElement !== input && !isFirstFaultElsewhere(box)) {
        input.focus({ preventScroll: context.place === "canvas" });
      }
    },
  );
  return box;
}

/** @param {NodeContext} context @param {{name: string, label: string, rows?: number, placeholder?: string, errors?: string[]}} options */
export function textField(context, { name, label, rows = 3, placeholder = "", errors }) {
  const spec = specOf(context, name);
  const area = make("textarea", {
    rows,
    placeholder,
    spellcheck: "false",
    ...(spec.kind === "text" ? { maxlength: spec.longest } : {}),
  });
  area.addEventListener("input", () => context.set({ [name]: area.value }));
  area.addEventListener("blur", () => context.app.editor.endSeries());
  watchValue(context, name, (value) => write(area, String(value ?? "")));
  return { box: field(context, { name, label, control: area, errors, wide: true }), area };
}

/**
 * A number to type, or to drag by its label. Empty: the model's default, shown as a placeholder.
 * @param {NodeContext} context
 * @param {{name: string, label: string, fallback?: (state: import("../../types/state").State) => number | null, onChange?: () => void, errors?: string[]}} options
 */
export function numberField(context, { name, label, fallback = () => null, onChange = () => {}, errors }) {
  const spec = specOf(context, name);
  if (spec.kind !== "number") {
    throw new Error(`${name} is no number`);
  }
  const { least, most, step, whole } = spec;
  const input = make("input", { type: "number", min: least, max: most, step: whole ? 1 : "any", inputmode: whole ? "numeric" : "decimal" });
  const set = (/** @type {number | null} */ value) => {
    context.set({ [name]: value });
    onChange();
  };
  input.addEventListener("input", () => {
    if (input.value && !input.validity.badInput) {
      set(Number(input.value));
    }
  });
  input.addEventListener("change", () => {
    if (!input.value && !input.validity.badInput) {
      set(spec.initial); // emptied: as it was at first
    }
    context.app.editor.endSeries();
  });
  const now = () => {
    const value = context.node().values[name];
    return typeof value === "number" ? value : (fallback(context.app.store.state) ?? least);
  };
  const scrub = (/** @type {number} */ steps) => {
    const raw = Math.round((now() + steps * step) / step) * step;
    set(Math.min(most, Math.max(least, Number(raw.toFixed(4)))));
  };
  watchValue(context, name, (value) => write(input, value === null ? "" : String(value)));
  context.watch(
    (state) => [fallback(state)],
    (value) => {
      input.placeholder = value === null ? "" : String(value);
    },
  );
  return field(context, { name, label, control: input, errors, scrub });
}

/**
 * A number between two ends, as a slider with a number beside it.
 * @param {NodeContext} context
 * @param {{name: string, label: string, errors?: string[]}} options
 */
export function rangeField(context, { name, label, errors }) {
  const spec = specOf(context, name);
  if (spec.kind !== "number") {
    throw new Error(`${name} is no number`);
  }
  const slider = make("input", { type: "range", min: spec.least, max: spec.most, step: spec.step });
  const exact = make("input", { type: "number", min: spec.least, max: spec.most, step: "any", "aria-label": `${label}, exactly`, class: "exact" });
  slider.addEventListener("input", () => context.set({ [name]: Number(slider.value) }));
  slider.addEventListener("change", () => context.app.editor.endSeries());
  exact.addEventListener("input", () => {
    if (exact.value && !exact.validity.badInput) {
      context.set({ [name]: Number(exact.value) });
    }
  });
  watchValue(context, name, (value) => {
    slider.value = String(value);
    write(exact, String(value));
  });
  return field(context, { name, label, control: make("div", { class: "range" }, slider, exact), errors, wide: true });
}

/**
 * One of a few, all in sight.
 * @param {NodeContext} context
 * @param {{name: string, label: string, choices: readonly {value: string, words: string}[], onChoose?: (value: string) => void}} options
 */
export function segments(context, { name, label, choices, onChoose }) {
  const group = newId();
  const row = make("div", { class: "segments", role: "radiogroup", "aria-label": label });
  for (const { value, words } of choices) {
    const radio = make("input", { type: "radio", name: group, value });
    radio.addEventListener("change", () => (onChoose ? onChoose(value) : context.set({ [name]: value })));
    row.append(make("label", {}, radio, make("span", {}, words)));
  }
  watchValue(context, name, (value) => {
    for (const radio of row.querySelectorAll("input")) {
      radio.checked = radio.value === value;
    }
  });
  return row;
}

/** @param {NodeContext} context @param {string} name @param {(value: import("../../types/graph").Value) => void} react */
export function watchValue(context, name, react) {
  context.watch(({ document }) => [document.graph.nodes[context.id]?.values[name] ?? null], (value) => react(value));
}

/** Writing the same value again would move the caret, and half of a number is no value yet. @param {HTMLInputElement | HTMLTextAreaElement} control @param {string} text */
export function write(control, text) {
  const isBusy = document.activeElement === control;
  const isSameNumber = control instanceof HTMLInputElement && isBusy && control.value !== "" && Number(control.value) === Number(text);
  if (control.value !== text && !isSameNumber && !(isBusy && control.validity.badInput)) {
    control.value = text;
  }
}

/** @param {NodeContext} context @param {string} name @returns {ValueSpec} */
function specOf(context, name) {
  const spec = NODE_TYPES[context.node().kind].values[name];
  if (!spec) {
    throw new Error(`a ${context.node().kind} node has no value ${name}`);
  }
  return spec;
}

/** @param {HTMLElement} handle @param {(steps: number) => void} scrub @param {NodeContext} context */
function makeScrubbable(handle, scrub, context) {
  let from = 0;
  handle.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && event.pointerType !== "touch") {
      from = event.clientX;
      handle.setPointerCapture(event.pointerId);
      event.stopPropagation(); // the node stays where it is
    }
  });
  handle.addEventListener("pointermove", (event) => {
    const steps = handle.hasPointerCapture(event.pointerId) ? Math.trunc((event.clientX - from) / STEP_PX) : 0;
    if (steps) {
      from += steps * STEP_PX;
      scrub(event.shiftKey ? steps * 10 : steps);
    }
  });
  handle.addEventListener("pointerup", () => context.app.editor.endSeries());
}

/** @param {HTMLElement} box */
function isFirstFaultElsewhere(box) {
  return document.activeElement?.getAttribute("aria-invalid") === "true" && !box.contains(document.activeElement);
}
