/** The canvas: nodes in one transformed layer, wires in one SVG layer below them. */

/** @import { App } from "../../types/app" */
/** @import { Box, GraphNode } from "../../types/graph" */
/** @import { Camera } from "../../types/state" */

import { button, find, keep, make } from "../dom.js";
import * as commands from "../graph/commands.js";
import { nodesOf } from "../graph/graph.js";
import { around, arranged } from "../graph/layout.js";
import { endFrame, frameOf, updateFrame } from "./frame.js";
import { HEAD, fitted, toWorld, widthOf, zoomed } from "./geometry.js";
import { mountGestures } from "./gestures.js";
import { openSearch } from "./menus.js";
import { mountMinimap } from "./minimap.js";
import { Wires } from "./wires.js";

/** A still view is drawn sharp again after this. */
const STILL_MS = 140;
/** From here on words are too small to read. */
const FAR_SCALE = 0.35;
/** Few nodes are drawn whole however small. */
const MANY_NODES = 60;
const DOTS_PX = 24;
const GUESSED_HEIGHT = 220;

/** @param {App} app */
export function mountCanvas(app) {
  const { store, editor } = app;
  const root = find("#canvas", HTMLElement);
  const world = find("#world", HTMLElement);
  const dots = find("#dots", HTMLElement);
  const layer = find("#nodes", HTMLElement);
  const wires = new Wires(find("#wires", SVGSVGElement), app);
  /** @type {Map<string, number>} */
  const heights = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let stillTimer;
  let isAsked = false;
  /** What the elements show. @type {WeakMap<HTMLElement, GraphNode>} */
  const drawnNodes = new WeakMap();
  /** @type {import("../../types/graph").Graph["wires"] | null} */
  let drawnWires = null;

  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target instanceof HTMLElement && target.isConnected) {
        heights.set(target.dataset.node ?? "", target.offsetHeight);
      }
    }
    drawMinimap();
  });

  /** @param {string} id @returns {Box} */
  const boxOf = (id) => {
    const node = editor.graph.nodes[id];
    const height = node?.collapsed ? HEAD : (heights.get(id) ?? GUESSED_HEIGHT);
    return { x: node?.x ?? 0, y: node?.y ?? 0, width: node ? widthOf(node) : 0, height };
  };
  /** Pointer events come more often than pictures: one move for each. @param {Camera} camera */
  const setCamera = (camera) => {
    app.camera.set({ camera });
  };
  const drawMinimap = mountMinimap({ canvas: find("#minimap", HTMLCanvasElement), root, app, boxOf, setCamera });
  mountGestures({ root, app, wires, lasso: find("#lasso", HTMLElement), boxOf, setCamera });

  const middle = () => ({ x: root.clientWidth / 2, y: root.clientHeight / 2 });
  const canvas = {
    boxOf,
    fit() {
      for (const element of layer.children) {
        if (element instanceof HTMLElement) {
          heights.set(element.dataset.node ?? "", element.offsetHeight); // not told yet
        }
      }
      const ids = store.state.selection.length > 1 ? store.state.selection : Object.keys(editor.graph.nodes);
      const box = around(ids.map(boxOf));
      if (box && root.clientWidth) {
        setCamera(fitted(box, { width: root.clientWidth, height: root.clientHeight }));
      }
    },
    /** @param {number} factor */
    zoom: (factor) => setCamera(zoomed(app.camera.state.camera, middle(), factor)),
    actualSize: () => setCamera(zoomed(app.camera.state.camera, middle(), 1 / app.camera.state.camera.scale)),
    arrange() {
      const places = arranged(editor.graph, boxOf);
      editor.do(commands.moveNodes(editor.graph, places));
      canvas.fit();
    },
    search() {
      const { left, top } = root.getBoundingClientRect();
      const point = middle();
      openSearch(app, { at: { x: left + point.x - 140, y: top + point.y - 160 }, place: toWorld(app.camera.state.camera, { x: point.x - 140, y: point.y - 160 }) });
    },
    /** @param {{clientX: number, clientY: number}} event @returns {{x: number, y: number}} */
    placeOf: ({ clientX, clientY }) => {
      const { left, top } = root.getBoundingClientRect();
      return toWorld(app.camera.state.camera, { x: clientX - left, y: clientY - top });
    },
    element: root,
  };

  const tools = find("#canvas-tools", HTMLElement);
  const scale = button({ label: "Actual size", words: "100 %", kind: "bare scale", act: canvas.actualSize });
  tools.append(
    button({ label: "Add a node", icon: "plus", kind: "bare", act: canvas.search }),
    make("span", { class: "gap" }),
    button({ label: "Zoom out", icon: "minus", kind: "bare", act: () => canvas.zoom(1 / 1.25) }),
    scale,
    button({ label: "Zoom in", icon: "zoom", kind: "bare", act: () => canvas.zoom(1.25) }),
    button({ label: "Fit everything", icon: "fit", kind: "bare", act: canvas.fit }),
    button({ label: "Arrange", icon: "arrange", kind: "bare", act: canvas.arrange }),
    make("span", { class: "gap" }),
    button({ label: "Undo", icon: "undo", kind: "bare", act: () => editor.undo() }),
    button({ label: "Redo", icon: "redo", kind: "bare", act: () => editor.redo() }),
  );

  app.camera.watch(
    ({ camera }) => [camera],
    ({ x, y, scale: now }) => {
      world.style.transform = `translate(${x}px, ${y}px) scale(${now})`;
      // Between 0.7 and 1.4 of their size: the pattern looks the same at half and at twice the scale.
      const grid = now / 2 ** Math.round(Math.log2(now));
      const tile = DOTS_PX * grid;
      dots.style.transform = `translate(${((x % tile) + tile) % tile}px, ${((y % tile) + tile) % tile}px) scale(${grid})`;
      root.dataset.far = String(now < FAR_SCALE && layer.children.length > MANY_NODES);
      scale.textContent = `${Math.round(now * 100)} %`;
      scale.setAttribute("aria-label", `${scale.textContent}: actual size`);
      world.dataset.moving = "true";
      clearTimeout(stillTimer);
      stillTimer = setTimeout(() => delete world.dataset.moving, STILL_MS);
      drawMinimap();
    },
  );
  store.watch(
    ({ document, view }) => [document.graph, view],
    (graph, view) => {
      root.hidden = view !== "canvas";
      const nodes = view === "canvas" ? nodesOf(graph) : [];
      const stay = new Set(nodes.map(({ id }) => id));
      for (const element of layer.children) {
        const key = element.getAttribute("data-key") ?? "";
        const isOther = editor.graph.nodes[key]?.kind !== element.getAttribute("data-kind");
        if (element instanceof HTMLElement && (!stay.has(key) || isOther)) {
          endFrame(element);
          observer.unobserve(element);
          heights.delete(key);
          if (isOther) {
            element.removeAttribute("data-key"); // another node under the same id
          }
        }
      }
      const isRewired = graph.wires !== drawnWires;
      drawnWires = graph.wires;
      keep(layer, nodes, ({ id }) => id, create, (element, node) => {
        if (isRewired || drawnNodes.get(element) !== node) {
          drawnNodes.set(element, node);
          updateFrame(app, element, node);
        }
      });
      wires.draw(graph, store.state.selectedWire);
      drawMinimap();
    },
  );
  store.watch(
    ({ selection, selectedWire }) => [selection, selectedWire],
    (selection, selectedWire) => {
      for (const element of layer.children) {
        element.setAttribute("data-selected", String(selection.includes(element.getAttribute("data-node") ?? "")));
      }
      wires.draw(editor.graph, selectedWire);
      drawMinimap();
    },
  );
  store.watch(
    ({ runs }) => [runs.map(({ phase, sampler }) => `${sampler} ${phase}`).join()],
    () => {
      if (!isAsked) {
        isAsked = true;
        requestAnimationFrame(() => {
          isAsked = false;
          wires.draw(editor.graph, store.state.selectedWire);
          for (const element of layer.children) {
            const id = element.getAttribute("data-node");
            const isBusy = store.state.runs.some(({ sampler, phase }) => sampler === id && phase === "running");
            element.setAttribute("data-busy", String(isBusy));
          }
        });
      }
    },
  );
  new ResizeObserver(drawMinimap).observe(root);
  return canvas;

  /** @param {GraphNode} node */
  function create(node) {
    const element = frameOf(app, node);
    observer.observe(element);
    // What has the focus is in view.
    element.addEventListener("focusin", (event) => {
      if (event.target instanceof Element && event.target.matches(":focus-visible")) {
        reveal(event.target);
      }
    });
    return element;
  }

  /** @param {Element} element */
  function reveal(element) {
    root.scrollTo(0, 0); // a browser scrolls what has the focus into view: here the camera does
    const box = element.getBoundingClientRect();
    const frame = root.getBoundingClientRect();
    const dx = Math.max(0, frame.left + 16 - box.left) - Math.max(0, box.right - frame.right + 16);
    const dy = Math.max(0, frame.top + 16 - box.top) - Math.max(0, Math.min(box.bottom, box.top + 200) - frame.bottom + 16);
    if (dx || dy) {
      const camera = app.camera.state.camera;
      setCamera({ ...camera, x: camera.x + dx, y: camera.y + dy });
    }
  }
}
