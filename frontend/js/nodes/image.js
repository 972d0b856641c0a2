/** The Image node: what happens to the run, the preview, then the picture. */

/** @import { MountNode } from "../../types/app" */
/** @import { Run, Shown, State } from "../../types/state" */

import { button, keep, make } from "../dom.js";
import { duration, eta, precision, runStatus, runStep, size } from "../format.js";
import { originOf } from "../graph/plan.js";
import { modelOfSampler } from "../models.js";
import { clear, show } from "../pictures.js";
import { isOpen, runOf } from "../runs.js";
import { actionsFor } from "../views/actions.js";

/** A small picture is not blown up further than this. */
const LARGEST_SCALE = 3;

/** @type {MountNode} */
export function mountImage(body, context) {
  const { app } = context;
  const { store, runs } = app;
  const now = () => store.state;
  const stage = make("strong", { class: "run-stage" });
  const step = make("span", { class: "run-step" });
  const detail = make("p", { class: "run-detail" });
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const cancel = button({ label: "Cancel", words: "Cancel", act: () => withRun(({ key }) => void runs.cancel(key)) });
  const again = button({ label: "Try again", words: "Try again", act: () => withRun(({ key }) => runs.retry(key)) });
  const state = make("div", { class: "run" }, make("p", { class: "run-status" }, stage, step), make("div", { class: "run-buttons" }, cancel, again), bar, detail);

  const picture = make("img", { class: "picture-now", alt: "" });
  const opener = make("button", { class: "picture", type: "button", "aria-label": "Look at the picture closely", hidden: true }, picture);
  const preview = make("img", { class: "preview", alt: "How far the picture is", hidden: true });
  const ghost = make("div", { class: "ghost", hidden: true });
  const placeholder = make("p", { class: "placeholder" });
  const frame = make("div", { class: "frame" }, placeholder, ghost, opener, preview);
  const strip = make("div", { class: "strip", role: "group", "aria-label": "Pictures of this run", hidden: true });
  const facts = make("p", { class: "facts-line" });
  const actions = actionsFor(app, () => pictureNow(), { compact: context.place === "canvas" });
  body.append(frame, strip, state, facts, actions.row);

  opener.addEventListener("click", () => void look());
  picture.addEventListener("error", () => {
    if (picture.getAttribute("src")) {
      picture.alt = "This picture is not on disk any more.";
    }
  });

  context.watch(
    (all) => [shownOf(all), runNow(all)],
    (shown, run) => {
      const image = shown?.job.result?.images[shown.index];
      const isDrawing = run !== undefined && isOpen(run.phase);
      opener.hidden = !image || (isDrawing && Boolean(run.preview));
      preview.hidden = !isDrawing || !run.preview;
      if (isDrawing && run.preview) {
        preview.src = run.preview;
        setRatio(preview, sizeOf(run));
      } else {
        preview.removeAttribute("src");
      }
      ghost.hidden = !isDrawing || Boolean(run.preview) || Boolean(image);
      if (isDrawing) {
        setRatio(ghost, sizeOf(run));
      }
      placeholder.hidden = Boolean(image) || isDrawing;
      placeholder.textContent = samplerOf(now()) ? "Your picture appears here" : "Wire a Sampler to this node";
      frame.dataset.phase = run?.phase ?? "idle";
    },
  );
  context.watch(
    (all) => [shownOf(all)],
    (shown) => {
      const images = shown?.job.result?.images ?? [];
      const image = images[shown?.index ?? 0];
      strip.hidden = images.length < 2;
      keep(strip, images, ({ id }) => id, stripButton, (element, { id }) => element.setAttribute("aria-pressed", String(id === image?.id)));
      if (!shown || !image) {
        clear(picture);
        return;
      }
      picture.alt = shown.job.request.prompt;
      setRatio(opener, image);
      const connection = app.connections[shown.service];
      if (connection) {
        void show(picture, image.image_url, connection);
      }
      actions.update();
    },
  );
  context.watch(
    (all) => [shownOf(all), runNow(all), all.services],
    (shown, run, services) => {
      const image = shown?.job.result?.images[shown.index];
      state.dataset.phase = run?.phase ?? "idle";
      cancel.hidden = !run || !isOpen(run.phase);
      cancel.disabled = run?.isCancelling ?? false;
      again.hidden = !run || isOpen(run.phase);
      detail.textContent = run?.error ?? "";
      if (run) {
        const isLost = run.phase === "unsent" && services[run.service]?.phase === "down";
        stage.textContent = isLost ? "Waiting for the service" : runStatus(run);
        step.textContent = [runStep(run), eta(run)].filter(Boolean).join(" · ");
        showProgress(bar, run);
      } else {
        stage.textContent = image ? "Finished" : "Ready";
        step.textContent = image && shown?.job.result ? `in ${duration(shown.job.result.generation_time_ms)}` : "";
        bar.value = 0;
      }
      actions.row.hidden = !image;
      facts.hidden = !image;
      facts.textContent = shown && image ? factsOf(shown, image) : "";
    },
  );

  function pictureNow() {
    const shown = shownOf(now());
    const image = shown?.job.result?.images[shown.index];
    return shown && image ? { ...image, service: shown.service, request: shown.job.request } : null;
  }

  /** @param {State} state */
  function samplerOf({ document }) {
    const origin = originOf(document.graph, context.id, "image");
    return origin?.kind === "sampler" ? origin.id : null;
  }

  /** @param {State} state */
  function shownOf(state) {
    const sampler = samplerOf(state);
    return sampler === null ? undefined : state.shown[sampler];
  }

  /** @param {State} state */
  function runNow(state) {
    const sampler = samplerOf(state);
    return sampler === null ? undefined : runOf(state.runs, sampler);
  }

  /** @param {(run: Run) => void} act */
  function withRun(act) {
    const run = runNow(now());
    if (run) {
      act(run);
    }
  }

  /** @param {Run} run */
  function sizeOf({ body, sampler }) {
    const defaults = modelOfSampler(now(), sampler)?.defaults;
    return { width: body.width ?? defaults?.width ?? 1, height: body.height ?? defaults?.height ?? 1 };
  }

  /** @param {import("../../types/api").JobImage} image */
  function stripButton(image) {
    const thumbnail = make("img", { alt: "", width: 48, height: 48 });
    const shown = shownOf(now());
    const connection = shown && app.connections[shown.service];
    if (connection) {
      void show(thumbnail, `${image.image_url}/thumbnail`, connection);
    }
    const element = make("button", { type: "button", "aria-label": `Seed ${image.seed}` }, thumbnail);
    element.addEventListener("click", () => {
      const sampler = samplerOf(now());
      const current = shownOf(now());
      const index = current?.job.result?.images.findIndex(({ id }) => id === image.id) ?? -1;
      if (sampler && current && index >= 0) {
        store.set({ shown: { ...now().shown, [sampler]: { ...current, index } } });
      }
    });
    return element;
  }

  async function look() {
    const image = pictureNow();
    if (!image) {
      return;
    }
    const key = `${image.service} ${image.id}`;
    if (!now().gallery.images.some((each) => each.key === key)) {
      await app.gallery.search("");
      await app.gallery.refresh(image.service);
    }
    store.set({ viewed: key });
  }
}

/** @param {Shown} shown @param {import("../../types/api").JobImage} image */
function factsOf({ job }, image) {
  const { result, request } = job;
  const loras = result?.loras_applied ?? [];
  return [
    `Seed ${image.seed}`,
    size(image),
    `${request.num_inference_steps} steps`,
    result ? precision(result.precision) : "",
    ...loras.map(({ name, matched_keys, unmatched_keys }) => `${name}${unmatched_keys ? ` (${matched_keys} of ${matched_keys + unmatched_keys} layers)` : ""}`),
  ].filter(Boolean).join(" · ");
}

/** Without a value the bar shows that something goes on, of unknown length. @param {HTMLProgressElement} bar @param {Run} run */
function showProgress(bar, { phase, progress, loading }) {
  const fraction = loading ? loading.fraction : progress?.steps ? progress.step / progress.steps : null;
  if (phase === "running" && !fraction) {
    bar.removeAttribute("value");
  } else {
    bar.value = phase === "running" ? Number(fraction) : 0;
  }
}

/** @param {HTMLElement} element @param {{width: number, height: number}} size px */
function setRatio(element, { width, height }) {
  element.style.setProperty("--ratio", String(width / height || 1));
  element.style.setProperty("--widest", `${LARGEST_SCALE * (width || 256)}px`);
}
