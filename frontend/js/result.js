/** The last result in full: its pictures, its facts, what can be done with it. */

import { find, make } from "./dom.js";

/** @typedef {import("./api.js").Api} Api */

/**
 * @param {Api} api
 * @param {any} result as in a job's `result`
 * @param {(values: Record<string, any>) => void} use puts values into the form
 */
export async function showResult(api, result, use) {
  const pictures = await Promise.all(
    result.images.map(async (/** @type {any} */ image) =>
      make("img", { src: await api.image(image.image_url), alt: result.prompt, width: image.width, height: image.height }),
    ),
  );
  find("result", HTMLElement).replaceChildren(
    make("div", { className: pictures.length > 1 ? "pictures many" : "pictures" }, ...pictures),
    make("p", {}, result.prompt),
    facts({ ...result, seconds: result.generation_time_ms / 1000 }),
    make(
      "div",
      { className: "actions" },
      make("a", { href: await api.image(result.download_url), download: result.filename }, "Download"),
      make("button", { type: "button", onclick: () => use({ seed: result.seed }) }, "Use this seed"),
      make("button", { type: "button", onclick: () => navigator.clipboard.writeText(result.prompt) }, "Copy prompt"),
    ),
  );
}

/** @param {any} facts */
export function facts({ seed, width, height, num_inference_steps, model, precision, seconds }) {
  const words = [
    `seed ${seed}`,
    `${width} × ${height}`,
    `${num_inference_steps} steps`,
    `${model}, ${precision}`,
    ...(seconds === undefined ? [] : [`${seconds.toFixed(1)} s`]),
  ];
  return make("p", { className: "facts" }, ...words.map((text) => make("span", {}, text)));
}
