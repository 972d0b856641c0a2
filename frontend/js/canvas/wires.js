/** Wires, as curves of one SVG layer below the nodes. */

/** @import { App } from "../../types/app" */
/** @import { Graph, Wire } from "../../types/graph" */

import { typeAt } from "../graph/graph.js";
import { anchorAt, pathBetween } from "./geometry.js";

const SVG = "http://www.w3.org/2000/svg";

export class Wires {
  #layer;
  #app;
  /** @type {Map<string, {group: SVGGElement, paths: SVGPathElement[], seen: string, look: string}>} */
  #drawn = new Map();
  #loose;

  /** @param {SVGSVGElement} layer @param {App} app */
  constructor(layer, app) {
    this.#layer = layer;
    this.#app = app;
    this.#loose = path("wire loose");
    layer.append(this.#loose);
  }

  /** @param {Graph} graph @param {string | null} selected */
  draw(graph, selected) {
    for (const [id, { group }] of this.#drawn) {
      if (!(id in graph.wires)) {
        group.remove();
        this.#drawn.delete(id);
      }
    }
    const busy = new Set(this.#app.store.state.runs.filter(({ phase }) => phase === "running").map(({ sampler }) => sampler));
    for (const wire of Object.values(graph.wires)) {
      const shape = pathBetween(anchorAt(graph, wire.from, "out"), anchorAt(graph, wire.to, "in"));
      const drawn = this.#drawn.get(wire.id) ?? this.#add(wire, graph);
      if (drawn.seen !== shape) {
        drawn.seen = shape;
        drawn.paths.forEach((each) => each.setAttribute("d", shape));
      }
      const look = `${wire.id === selected} ${busy.has(wire.to.node) || busy.has(wire.from.node)}`;
      if (drawn.look !== look) {
        drawn.look = look;
        const [isSelected = "", isBusy = ""] = look.split(" ");
        drawn.group.setAttribute("data-selected", isSelected);
        drawn.group.setAttribute("data-busy", isBusy);
      }
    }
  }

  /** A wire whose one end is at the pointer; null: none. @param {{from: {x: number, y: number}, to: {x: number, y: number}, type: string, fits: boolean} | null} loose */
  drawLoose(loose) {
    this.#loose.setAttribute("d", loose ? pathBetween(loose.from, loose.to) : "");
    this.#loose.setAttribute("data-type", loose?.type ?? "");
    this.#loose.setAttribute("data-fits", String(loose?.fits ?? true));
  }

  /** @param {Wire} wire @param {Graph} graph */
  #add(wire, graph) {
    const group = document.createElementNS(SVG, "g");
    group.setAttribute("class", "wire-group");
    group.setAttribute("data-wire", wire.id);
    group.setAttribute("data-type", typeAt(graph, wire.from, "out") ?? "");
    const paths = [path("wire-hit"), path("wire")];
    group.append(...paths);
    this.#layer.append(group);
    const drawn = { group, paths, seen: "", look: "" };
    this.#drawn.set(wire.id, drawn);
    return drawn;
  }
}

/** @param {string} name */
function path(name) {
  const element = document.createElementNS(SVG, "path");
  element.setAttribute("class", name);
  return element;
}
