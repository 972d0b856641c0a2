/** The Compare node: two pictures over each other, beside each other, or their difference; and how far they are apart. */

/** @import { App, MountNode } from "../../types/app" */
/** @import { Pixels } from "../graph/difference.js" */
/** @import { JobResult } from "../../types/api" */
/** @import { Shown, State } from "../../types/state" */

import { button, find, make } from "../dom.js";
import { duration, precision, runStatus, runStep } from "../format.js";
import { readAsset, isAsset } from "../assets.js";
import { differenceMap, psnr, ssim } from "../graph/difference.js";
import { originOf } from "../graph/plan.js";
import { isOpen, runOf } from "../runs.js";
import { segments, watchValue } from "./fields.js";

/** @typedef {{key: string, label: string, read: () => Promise<Blob | null>, result: JobResult | null, memory: number | null}} Side */

/** @type {MountNode} */
export function mountCompare(body, context) {
  const { app } = context;
  const canvases = { a: make("canvas", { class: "side-a", role: "img" }), b: make("canvas", { class: "side-b", role: "img" }), map: make("canvas", { class: "side-map", role: "img", "aria-label": "Difference map: black where the pictures agree" }) };
  const labels = { a: make("span", { class: "side-name" }), b: make("span", { class: "side-name right" }) };
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, step: 0.5, class: "cut", "aria-label": "How much of A is seen" });
  const hint = make("p", { class: "placeholder" });
  const stage = make("div", { class: "compare-stage" }, canvases.b, canvases.a, canvases.map, slider, labels.a, labels.b, hint);
  const view = segments(context, {
    name: "view",
    label: "How to compare",
    choices: [
      { value: "slider", words: "Slider" },
      { value: "side", words: "Side by side" },
      { value: "difference", words: "Difference" },
    ],
  });
  const figures = make("dl", { class: "figures" });
  const large = button({ label: "Look at the comparison closely", icon: "expand", kind: "bare", act: () => app.store.set({ compared: context.id }) });
  slider.addEventListener("input", () => stage.style.setProperty("--cut", `${slider.value}%`));
  watchValue(context, "view", (value) => {
    stage.dataset.view = String(value);
  });
  body.append(make("div", { class: "row apart" }, view, large), stage, figures);

  /** The pair that is drawn, or being drawn. */
  let drawn = "";
  context.watch(
    (state) => [keyOf(state), waitingFor(state)],
    (key, waiting) => {
      const state = app.store.state;
      const a = sideOf(app, state, context.id, "a");
      const b = sideOf(app, state, context.id, "b");
      const isComplete = a !== null && b !== null;
      hint.hidden = isComplete;
      hint.textContent = waiting;
      stage.dataset.complete = String(isComplete);
      figures.hidden = !isComplete;
      if (isComplete && key !== drawn) {
        drawn = key;
        void draw(a, b, key);
      }
    },
  );

  /** @param {Side} a @param {Side} b @param {string} key */
  async function draw(a, b, key) {
    try {
      const [first, second] = await Promise.all([pixelsOf(a), pixelsOf(b)]);
      if (key !== drawn) {
        return; // another pair has come meanwhile
      }
      put(canvases.a, first);
      put(canvases.b, second);
      canvases.a.setAttribute("aria-label", `A: ${a.label}`);
      canvases.b.setAttribute("aria-label", `B: ${b.label}`);
      [labels.a.textContent, labels.b.textContent] = [a.label, b.label];
      stage.style.setProperty("--ratio", String(first.width / first.height));
      const isSameSize = first.width === second.width && first.height === second.height;
      if (isSameSize) {
        put(canvases.map, differenceMap(first, second));
      }
      showFigures(a, b, isSameSize ? [psnr(first, second), ssim(first, second)] : null);
    } catch (error) {
      drawn = "";
      hint.hidden = false;
      hint.textContent = `The pictures were not read: ${error instanceof Error ? error.message : error}.`;
    }
  }

  /** @param {Side} a @param {Side} b @param {[number, number] | null} distance */
  function showFigures(a, b, distance) {
    const rows = [
      ...(distance
        ? [
            ["PSNR", Number.isFinite(distance[0]) ? `${distance[0].toFixed(2)} dB` : "∞ dB (equal)"],
            ["SSIM", distance[1].toFixed(4)],
          ]
        : [["PSNR", "the sizes differ"]]),
      ...[a, b].flatMap(({ label, result, memory }) => (result ? [[label, [duration(result.generation_time_ms), memory === null ? "" : `${(memory / 1024).toFixed(1)} GiB`].filter(Boolean).join(" · ")]] : [])),
    ];
    figures.replaceChildren(...rows.map(([name = "", value = ""]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  /** @param {State} state */
  function keyOf(state) {
    return ["a", "b"].map((socket) => sideOf(app, state, context.id, socket)?.key ?? "").join(" | ");
  }

  /** @param {State} state */
  function waitingFor(state) {
    for (const socket of ["a", "b"]) {
      const origin = originOf(state.document.graph, context.id, socket);
      if (!origin) {
        return `Wire a picture to ${socket.toUpperCase()}`;
      }
      const run = runOf(state.runs, origin.id);
      if (run && isOpen(run.phase)) {
        return `${socket.toUpperCase()}: ${runStatus(run)} ${runStep(run)}`;
      }
      if (run?.error) {
        return `${socket.toUpperCase()}: ${run.error}`;
      }
    }
    return "Run to see both pictures";
  }
}

/** @param {App} app @param {State} state @param {string} nodeId @param {string} socket @returns {Side | null} */
function sideOf(app, state, nodeId, socket) {
  const origin = originOf(state.document.graph, nodeId, socket);
  if (origin?.kind === "image-input" && typeof origin.values.image === "string" && isAsset(origin.values.image)) {
    const name = origin.values.image;
    return { key: name, label: "Input", read: () => readAsset(name), result: null, memory: null };
  }
  const shown = origin ? state.shown[origin.id] : undefined;
  const image = shown?.job.result?.images[shown.index];
  const run = origin && runOf(state.runs, origin.id);
  if (!shown || !image || (run && isOpen(run.phase))) {
    return null;
  }
  const connection = app.connections[shown.service];
  return {
    key: `${shown.service} ${image.id}`,
    label: `${precision(shown.job.result?.precision ?? shown.service)}, seed ${image.seed}`,
    read: async () => (connection ? connection.ask((client) => client.blob(image.image_url)) : null),
    result: shown.job.result,
    memory: memoryOf(state, shown),
  };
}

/** Of the worker that drew, MiB. @param {State} state @param {Shown} shown */
function memoryOf(state, { service }) {
  const workers = state.services[service]?.queue?.workers ?? [];
  return workers.find(({ memory_mib }) => memory_mib !== null)?.memory_mib ?? null;
}

/** The very numbers of the file: no colour management. @param {Side} side @returns {Promise<ImageData>} */
async function pixelsOf(side) {
  const blob = await side.read();
  if (!blob) {
    throw new Error("it is not there any more");
  }
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  if (!pen) {
    throw new Error("the browser cannot draw");
  }
  pen.drawImage(bitmap, 0, 0);
  return pen.getImageData(0, 0, bitmap.width, bitmap.height);
}

/** @param {HTMLCanvasElement} canvas @param {Pixels} pixels */
function put(canvas, { width, height, data }) {
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d")?.putImageData(new ImageData(new Uint8ClampedArray(data), width, height), 0, 0);
}

/** The same component, large, for the dialog. @param {HTMLElement} body */
export function focusSlider(body) {
  find(".cut", HTMLInputElement, body).focus();
}
