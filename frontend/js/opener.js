/** Files that are dropped, pasted or chosen: LoRAs, pictures with a request in them, workflows. */

/** @import { Wanted } from "./graph/restore.js" */
/** @import { ServiceName } from "../types/state" */
/** @import { Editor } from "./editor.js" */
/** @import { Library } from "./library.js" */
/** @import { Store } from "./store.js" */

import { SERVICE_NAMES } from "./config.js";
import { keepAsset } from "./assets.js";
import { graphOf, wantedFrom } from "./graph/restore.js";
import { isWorkflow, parse } from "./graph/workflow.js";
import { isLoraFile } from "./library.js";
import { firstService } from "./services.js";

/** Larger files are no workflows. */
const MOST_JSON_BYTES = 20 * 2 ** 20;

export class Opener {
  #store;
  #editor;
  #library;
  #onOpened;

  /** @param {Store} store @param {Editor} editor @param {Library} library @param {() => void} onOpened another graph is there */
  constructor(store, editor, library, onOpened) {
    this.#store = store;
    this.#editor = editor;
    this.#library = library;
    this.#onOpened = onOpened;
  }

  /** @param {readonly File[]} files @param {{x: number, y: number} | null} [place] on the canvas */
  async open(files, place = null) {
    const loras = files.filter(isLoraFile);
    const others = files.filter((file) => !isLoraFile(file));
    if (loras.length) {
      void this.#library.add(loras, place);
    }
    for (const file of others) {
      try {
        await this.#openOne(file, place);
      } catch (error) {
        this.#store.say(`${file.name} was not opened: ${error instanceof Error ? error.message : error}.`);
      }
    }
  }

  /** @param {string} text of a workflow @param {string} name */
  async openText(text, name) {
    let data;
    try {
      data = JSON.parse(text);
    } catch {
      throw new Error("it is not JSON");
    }
    if (isWorkflow(data)) {
      const { graph, name: own } = parse(data);
      this.#replace(graph, own || name);
    } else if (!(await this.#openComfy(data, name))) {
      throw new Error("it is no workflow of this page and none of ComfyUI");
    }
  }

  /** The graph of a picture's request. @param {unknown} request @param {ServiceName} service @param {number} [seed] of one of its pictures */
  openRequest(request, service, seed) {
    const wanted = wantedFrom(request);
    this.#replace(graphOf(seed === undefined ? wanted : { ...wanted, seed, num_images: 1 }, service), "");
  }

  /** @param {File} file @param {{x: number, y: number} | null} place */
  async #openOne(file, place) {
    if (file.type === "image/png" || /\.png$/i.test(file.name)) {
      await this.#openPng(file, place);
    } else if (file.type.startsWith("image/")) {
      await this.#addInput(file, place);
    } else if (/\.json$/i.test(file.name)) {
      if (file.size > MOST_JSON_BYTES) {
        throw new Error("it is too large for a workflow");
      }
      await this.openText(await file.text(), file.name.replace(/\.json$/i, ""));
    } else {
      throw new Error("this page opens .safetensors, .png, .json and pictures");
    }
  }

  /** @param {File} file @param {{x: number, y: number} | null} place */
  async #openPng(file, place) {
    const [{ pngTexts }, { fromInfotext }] = await Promise.all([import("./graph/png.js"), import("./graph/infotext.js")]);
    const texts = await pngTexts(await file.arrayBuffer());
    if (texts.flux_api !== undefined) {
      const { request, precision } = JSON.parse(texts.flux_api);
      this.#replace(graphOf(wantedFrom(request), this.#serviceFor(precision)), "");
      this.#store.say("The graph of this picture is back.");
      return;
    }
    const infotext = fromInfotext(texts.parameters ?? "");
    if (infotext) {
      this.#openForeign(infotext, []);
    } else if (texts.prompt === undefined || !(await this.#openComfy(JSON.parse(texts.prompt), ""))) {
      await this.#addInput(file, place);
      this.#store.say("The picture says nothing about how it was made: it is an input now.");
    }
  }

  /** False when it is no workflow of ComfyUI. @param {unknown} data @param {string} name */
  async #openComfy(data, name) {
    const { fromComfy, isComfy } = await import("./graph/comfy.js");
    if (!isComfy(data)) {
      return false;
    }
    const { wanted, leftOut } = fromComfy(data);
    this.#openForeign(wanted, leftOut, name);
    return true;
  }

  /** A request of another program: its model may have another name here. @param {Wanted} wanted @param {readonly string[]} leftOut @param {string} [name] */
  #openForeign(wanted, leftOut, name = "") {
    const service = firstService(this.#store.state);
    const models = this.#store.state.services[service]?.models ?? [];
    const isKnown = models.some(({ id }) => id === wanted.model);
    this.#replace(graphOf({ ...wanted, model: isKnown ? wanted.model : null, backend: null }, service), name);
    const missing = [
      ...(wanted.model && !isKnown ? [`its model ${wanted.model} is not here, so the default draws`] : []),
      ...(leftOut.length ? [`left out: ${leftOut.join(", ")}`] : []),
    ];
    this.#store.say(missing.length ? `Opened; ${missing.join("; ")}.` : "Opened.");
  }

  /** @param {Blob} file @param {{x: number, y: number} | null} place */
  async #addInput(file, place) {
    const image = await keepAsset(file);
    const nodes = Object.values(this.#editor.graph.nodes);
    const left = Math.min(0, ...nodes.map(({ x }) => x));
    this.#editor.add("image-input", place ?? { x: left, y: Math.max(0, ...nodes.map(({ y }) => y)) + 340 }, { image });
  }

  /** @param {string} precision */
  #serviceFor(precision) {
    return SERVICE_NAMES.find((name) => name === precision) ?? firstService(this.#store.state);
  }

  /** @param {import("../types/graph").Graph} graph @param {string} name */
  #replace(graph, name) {
    this.#editor.replace(graph, "open", name);
    this.#onOpened();
  }
}
