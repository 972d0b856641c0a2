/** The newest result: the picture, its facts, its actions. */

/** @import { JobImage } from "../../types/api" */
/** @import { Run, Shown } from "../../types/state" */
/** @import { Connection } from "../connection.js" */
/** @import { Gallery } from "../gallery.js" */
/** @import { Store } from "../store.js" */

import { find, keep, make } from "../dom.js";
import { duration, modelTitle, precision, size } from "../format.js";
import { clear, show } from "../pictures.js";
import { modelOf, valueOf } from "../request.js";
import { mountActions, showFacts } from "./facts.js";
import { currentRun } from "./run.js";

/** A small picture is not blown up further than this. */
const LARGEST_SCALE = 3;

/** @param {Store} store @param {Connection} connection @param {Gallery} gallery */
export function mountStage(store, connection, gallery) {
  const picture = find("#picture", HTMLImageElement);
  const opener = find("#open-picture", HTMLButtonElement);
  const result = find("#result", HTMLElement);
  const facts = find("#facts", HTMLElement);
  const placeholder = find("#placeholder", HTMLElement);
  const strip = find("#strip", HTMLElement);
  const offerActions = mountActions(find("#actions", HTMLElement), {
    store,
    connection,
    choose: () => pictureOf(store.state.shown),
  });

  picture.addEventListener("error", () => {
    if (picture.getAttribute("src")) {
      picture.alt = "This picture is not on disk any more.";
    }
  });
  opener.addEventListener("click", async () => {
    const image = pictureOf(store.state.shown);
    if (image && !store.state.gallery.images.some(({ id }) => id === image.id)) {
      await gallery.refresh();
    }
    store.set({ viewed: image?.id ?? null });
  });

  store.watch(
    ({ shown, service }) => [shown, service.models],
    (shown, models) => {
      const image = pictureOf(shown);
      opener.hidden = !image;
      result.dataset.empty = String(!image);
      keep(strip, shown?.job.result?.images ?? [], ({ id }) => id, stripButton, (button, { id }) =>
        button.setAttribute("aria-pressed", String(id === image?.id)),
      );
      strip.hidden = strip.children.length < 2;
      if (!shown?.job.result || !image) {
        clear(picture);
        return;
      }
      picture.alt = image.request.prompt;
      setRatio(picture, image);
      void show(picture, image.image_url, connection);
      offerActions(image);
      showFacts(facts, [
        ["Seed", String(image.seed)],
        ["Size", size(image)],
        ["Steps", String(image.request.num_inference_steps)],
        ["Model", modelTitle(image.request.model, models)],
        ["Precision", precision(shown.job.result.precision)],
        ["Time", duration(shown.job.result.generation_time_ms)],
      ]);
    },
  );
  store.watch(
    ({ shown, runs }) => [shown, currentRun(runs)],
    (shown, run) => {
      const isDrawing = !shown && run !== undefined && run.phase !== "failed";
      placeholder.hidden = isDrawing || shown !== null;
      showGhost(store, isDrawing ? run : null);
    },
  );

  /** @param {JobImage} image */
  function stripButton(image) {
    const thumbnail = make("img", { alt: "", width: 48, height: 48 });
    void show(thumbnail, `${image.image_url}/thumbnail`, connection);
    const button = make("button", { type: "button", "aria-label": `Seed ${image.seed}` }, thumbnail);
    button.addEventListener("click", () => {
      const { shown } = store.state;
      const index = shown?.job.result?.images.findIndex(({ id }) => id === image.id) ?? -1;
      if (shown && index >= 0) {
        store.set({ shown: { ...shown, index } });
      }
    });
    return button;
  }
}

/** @param {Shown | null} shown */
function pictureOf(shown) {
  const image = shown?.job.result?.images[shown.index];
  return shown && image ? { ...image, request: shown.job.request } : null;
}

/** An empty frame of the coming picture's shape. @param {Store} store @param {Run | null} run */
function showGhost(store, run) {
  const ghost = find("#ghost", HTMLElement);
  ghost.hidden = run === null;
  if (run) {
    const { draft, service } = store.state;
    const model = modelOf(draft, service);
    setRatio(ghost, {
      width: run.body.width ?? Number(valueOf(draft, "width", model)),
      height: run.body.height ?? Number(valueOf(draft, "height", model)),
    });
  }
}

/** @param {HTMLElement} element @param {{width: number, height: number}} size px */
function setRatio(element, { width, height }) {
  element.style.setProperty("--ratio", String(width / height || 1));
  element.style.setProperty("--widest", `${LARGEST_SCALE * (width || 256)}px`);
}
