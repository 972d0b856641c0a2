/** The Sampler node: size, steps, seed. */

/** @import { MountNode } from "../../types/app" */
/** @import { State } from "../../types/state" */

import { button, keep, make } from "../dom.js";
import { modelOfSampler } from "../models.js";
import { newSeed } from "../random.js";
import { presets } from "../sizes.js";
import { field, numberField, segments, watchValue, write } from "./fields.js";

/** @type {MountNode} */
export function mountSampler(body, context) {
  const { store } = context.app;
  /** @param {"width" | "height" | "num_inference_steps" | "guidance_scale"} name */
  const standard = (name) => (/** @type {State} */ state) => modelOfSampler(state, context.id)?.defaults[name] ?? null;
  const guidance = numberField(context, { name: "guidance_scale", label: "Guidance", fallback: standard("guidance_scale") });
  context.watch(
    (state) => [modelOfSampler(state, context.id)?.uses_guidance_scale ?? false],
    (isUsed) => {
      guidance.hidden = !isUsed;
    },
  );
  body.append(
    shapes(),
    make(
      "div",
      { class: "sides" },
      numberField(context, { name: "width", label: "Width", fallback: standard("width") }),
      button({ label: "Swap width and height", icon: "swap", kind: "bare", act: swap }),
      numberField(context, { name: "height", label: "Height", fallback: standard("height") }),
    ),
    make(
      "div",
      { class: "fields" },
      numberField(context, { name: "num_inference_steps", label: "Steps", fallback: standard("num_inference_steps") }),
      numberField(context, { name: "num_images", label: "Pictures" }),
      guidance,
      format(),
    ),
    seed(),
  );

  function swap() {
    const { width, height } = sidesNow(store.state);
    context.set({ width: height, height: width });
  }

  /** @param {State} state */
  function sidesNow(state) {
    const { width, height } = context.node().values;
    const defaults = modelOfSampler(state, context.id)?.defaults;
    return { width: width ?? defaults?.width ?? null, height: height ?? defaults?.height ?? null };
  }

  function shapes() {
    const row = make("div", { class: "shapes", role: "group", "aria-label": "Shape" });
    context.watch(
      (state) => [modelOfSampler(state, context.id), state.document.graph.nodes[context.id]?.values],
      (model, _values) => {
        const now = sidesNow(store.state);
        keep(
          row,
          model ? presets(model) : [],
          ({ name, width, height }) => `${name} ${width} ${height}`,
          shape,
          (element, { width, height }) => element.setAttribute("aria-pressed", String(now.width === width && now.height === height)),
        );
      },
    );
    return row;
  }

  /** @param {import("../sizes.js").Size} size */
  function shape({ name, width, height }) {
    const words = `${name}, ${width} × ${height}`;
    const drawing = make("span", { class: "shape" });
    const unit = 18 / Math.max(width, height);
    drawing.style.width = `${name === "Large" ? 22 : width * unit}px`;
    drawing.style.height = `${name === "Large" ? 22 : height * unit}px`;
    const element = make("button", { type: "button", class: "shape-button", title: words, "aria-label": words }, drawing);
    element.addEventListener("click", () => context.set({ width, height }));
    return element;
  }

  function format() {
    const select = make("select");
    select.addEventListener("change", () => context.set({ output_format: select.value }));
    keep(select, ["png", "jpeg", "webp"], String, (name) => make("option", { value: name }, name.toUpperCase()));
    watchValue(context, "output_format", (value) => {
      select.value = String(value);
    });
    return field(context, { name: "output_format", label: "File", control: select });
  }

  function seed() {
    const input = make("input", { type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, "aria-label": "Seed" });
    input.addEventListener("input", () => {
      if (input.value && !input.validity.badInput) {
        context.set({ seed: Number(input.value), seed_mode: "fixed" });
      }
    });
    const mode = segments(context, {
      name: "seed_mode",
      label: "Seed",
      choices: [
        { value: "random", words: "Random" },
        { value: "fixed", words: "Fixed" },
      ],
      onChoose: (value) => {
        const last = store.state.shown[context.id];
        const kept = context.node().values.seed ?? last?.job.result?.images[last.index]?.seed ?? newSeed();
        context.set(value === "fixed" ? { seed_mode: value, seed: kept } : { seed_mode: value });
      },
    });
    const dice = button({ label: "Another seed", icon: "seed", kind: "bare", act: () => context.set({ seed: newSeed(), seed_mode: "fixed" }) });
    context.watch(
      ({ document, shown }) => [document.graph.nodes[context.id]?.values, shown[context.id]],
      (values, last) => {
        const isFixed = values?.seed_mode === "fixed";
        write(input, isFixed && values.seed !== null ? String(values.seed) : "");
        const drawn = last?.job.result?.images[last.index]?.seed;
        input.placeholder = drawn === undefined ? "drawn each time" : `last: ${drawn}`;
      },
    );
    return field(context, { name: "seed", label: "Seed", control: make("div", { class: "seed" }, mode, input, dice), wide: true });
  }
}
