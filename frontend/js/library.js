/** LoRAs: the libraries of both services, files on their way there, and the nodes that use them. */

/** @import { LoraInList as Lora } from "../types/api" */
/** @import { ServiceName, Upload } from "../types/state" */
/** @import { Connections } from "./services.js" */
/** @import { Editor } from "./editor.js" */
/** @import { Store } from "./store.js" */

import { isReachable } from "./connection.js";
import * as commands from "./graph/commands.js";
import { freeIds, newNode, nodesOf, sourcesOf } from "./graph/graph.js";
import { NODE_TYPES } from "./graph/table.js";
import { connectionTo } from "./services.js";

const LORA = /\.safetensors$/i;
const APART_PX = 60;
const LORA_HEIGHT_PX = 330;

/** @param {File} file */
export function isLoraFile(file) {
  return LORA.test(file.name);
}

export class Library {
  #connections;
  #store;
  #editor;
  /** Files that did not arrive, to send again. @type {Map<string, File>} */
  #files = new Map();

  /** @param {Connections} connections @param {Store} store @param {Editor} editor */
  constructor(connections, store, editor) {
    this.#connections = connections;
    this.#store = store;
    this.#editor = editor;
  }

  /** Reads the lists whenever a service comes. */
  follow() {
    for (const { name } of Object.values(this.#connections)) {
      this.#store.watch(
        ({ services }) => [isReachable(services[name])],
        (isUp) => void (isUp && this.refresh(name)),
      );
    }
  }

  /** @param {ServiceName} service */
  async refresh(service) {
    try {
      const { loras } = await connectionTo(this.#connections, service).ask((client) => client.loras());
      this.#store.setService(service, { loras, lorasError: "" });
    } catch (error) {
      this.#store.setService(service, { loras: [], lorasError: messageOf(error) });
    }
  }

  /**
   * Uploads files, each with a node of its own, wired to every Model node.
   * @param {readonly File[]} files
   * @param {{x: number, y: number} | null} [place] of the first; null: left of the Model nodes
   */
  async add(files, place = null) {
    const ids = this.#addNodes(files.map(() => null), place);
    await Promise.all(files.map((file, index) => this.#upload(String(ids[index]), file)));
  }

  /** A node for a LoRA of the library. @param {Lora} lora @param {{x: number, y: number} | null} [place] */
  use(lora, place = null) {
    return this.#addNodes([lora.name], place)[0];
  }

  /** A file for a node that is there. @param {string} nodeId @param {File} file */
  async fill(nodeId, file) {
    await this.#upload(nodeId, file);
  }

  /** Sends the file of a node again. @param {string} nodeId */
  async again(nodeId) {
    const file = this.#files.get(nodeId);
    if (file) {
      await this.#upload(nodeId, file);
    }
  }

  /** @param {ServiceName} service @param {Lora} lora @param {{name?: string, trigger_words?: string[]}} changes @returns {Promise<string>} what went wrong, or "" */
  async change(service, lora, changes) {
    try {
      const changed = await connectionTo(this.#connections, service).ask((client) => client.changeLora(lora.name, changes));
      if (changed.name !== lora.name) {
        this.#rename(lora.name, changed.name);
      }
      await this.refresh(service);
      return "";
    } catch (error) {
      return messageOf(error);
    }
  }

  /** @param {ServiceName} service @param {Lora} lora */
  async delete(service, lora) {
    try {
      await connectionTo(this.#connections, service).ask((client) => client.deleteLora(lora.name));
      this.#store.say(`${lora.name} is deleted.`);
    } catch (error) {
      this.#store.say(`Not deleted: ${messageOf(error)}.`);
    }
    await this.refresh(service);
  }

  /** @param {readonly (string | null)[]} names @param {{x: number, y: number} | null} place @returns {string[]} ids */
  #addNodes(names, place) {
    const graph = this.#editor.graph;
    const models = nodesOf(graph).filter(({ kind }) => kind === "model");
    const first = models[0];
    const start = place ?? {
      x: (first?.x ?? 0) - NODE_TYPES.lora.width - APART_PX,
      y: (first?.y ?? 0) + LORA_HEIGHT_PX * (first ? sourcesOf(graph, first.id, "loras").length : 0),
    };
    const nextId = freeIds(graph, "nodes");
    const nodes = names.map((name, index) => newNode(nextId(), "lora", { x: start.x, y: start.y + index * LORA_HEIGHT_PX }, { name }));
    this.#editor.do(
      commands.together(
        nodes.length === 1 ? "add a LoRA" : `add ${nodes.length} LoRAs`,
        graph,
        nodes.flatMap((node) => [
          () => commands.addNode(node),
          ...models.map(({ id }) => (/** @type {import("../types/graph").Graph} */ now) => commands.connect(now, { node: node.id, socket: "lora" }, { node: id, socket: "loras" })),
        ]),
      ),
    );
    this.#editor.select(nodes.map(({ id }) => id));
    return nodes.map(({ id }) => id);
  }

  /** To every service that answers: the same file is kept once where they share a folder. @param {string} nodeId @param {File} file */
  async #upload(nodeId, file) {
    const targets = Object.values(this.#connections).filter(({ state }) => isReachable(state));
    this.#files.set(nodeId, file);
    this.#setUpload(nodeId, { filename: file.name, size: file.size, fraction: 0, phase: "sending", error: "" });
    if (!targets.length) {
      this.#failUpload(nodeId, "No service answers. Try again when one does.");
      return;
    }
    try {
      let lora;
      for (const [index, connection] of targets.entries()) {
        lora = await connection.ask((client) =>
          client.uploadLora(file, (fraction) => this.#setUpload(nodeId, { fraction: (index + fraction) / targets.length })),
        );
        await this.refresh(connection.name);
      }
      this.#files.delete(nodeId);
      const { [nodeId]: _, ...rest } = this.#store.state.uploads;
      this.#store.set({ uploads: rest });
      if (lora && this.#editor.graph.nodes[nodeId]) {
        this.#editor.setValues(nodeId, { name: lora.name });
      }
    } catch (error) {
      this.#failUpload(nodeId, messageOf(error));
    }
  }

  /** Nodes that use it go on using it. @param {string} before @param {string} after */
  #rename(before, after) {
    const nodes = nodesOf(this.#editor.graph).filter(({ kind, values }) => kind === "lora" && values.name === before);
    this.#editor.do(commands.together("rename a LoRA", this.#editor.graph, nodes.map(({ id }) => (graph) => commands.setValues(graph, id, { name: after }))));
  }

  /** @param {string} nodeId @param {string} error */
  #failUpload(nodeId, error) {
    this.#setUpload(nodeId, { phase: "failed", error });
    this.#store.set({ announcement: `Not uploaded: ${error}` });
  }

  /** @param {string} nodeId @param {Partial<Upload>} patch */
  #setUpload(nodeId, patch) {
    const { uploads } = this.#store.state;
    const before = uploads[nodeId] ?? { filename: "", size: 0, fraction: 0, phase: "sending", error: "" };
    this.#store.set({ uploads: { ...uploads, [nodeId]: { ...before, ...patch } } });
  }
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
