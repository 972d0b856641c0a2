/** The whole graph, small, with the part that is seen. A click goes there. */

/** @import { App } from "../../types/app" */
/** @import { Box } from "../../types/graph" */
/** @import { Camera } from "../../types/state" */

import { around } from "../graph/layout.js";
import { NODE_TYPES } from "../graph/table.js";

const WIDTH = 168;
const HEIGHT = 104;
const MARGIN_PX = 8;
/** Seen from the corner of the eye: it need not move at every frame. */
const BETWEEN_MS = 80;
const NAMES = ["model", "lora", "text-socket", "image", "mask", "reference", "muted", "accent"];

/**
 * @param {{canvas: HTMLCanvasElement, root: HTMLElement, app: App, boxOf: (id: string) => Box, setCamera: (camera: Camera) => void}} options
 * @returns {() => void} draws it
 */
export function mountMinimap({ canvas, root, app, boxOf, setCamera }) {
  const pen = canvas.getContext("2d");
  let view = { x: 0, y: 0, scale: 1 };
  let isAsked = false;
  /** @type {Map<string, string>} */
  let colours = new Map();

  const go = (/** @type {PointerEvent} */ event) => {
    const { left, top } = canvas.getBoundingClientRect();
    const x = (event.clientX - left - view.x) / view.scale;
    const y = (event.clientY - top - view.y) / view.scale;
    const { scale } = app.camera.state.camera;
    setCamera({ scale, x: root.clientWidth / 2 - x * scale, y: root.clientHeight / 2 - y * scale });
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    go(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) {
      go(event);
    }
  });

  const ask = () => {
    if (!isAsked) {
      isAsked = true;
      setTimeout(() => requestAnimationFrame(draw), BETWEEN_MS);
    }
  };
  const repaint = () => {
    colours = new Map();
    ask();
  };
  matchMedia("(prefers-color-scheme: light)").addEventListener("change", repaint);
  new MutationObserver(repaint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  return ask;

  function draw() {
    isAsked = false;
    const nodes = Object.values(app.editor.graph.nodes);
    const camera = app.camera.state.camera;
    const seen = { x: -camera.x / camera.scale, y: -camera.y / camera.scale, width: root.clientWidth / camera.scale, height: root.clientHeight / camera.scale };
    const all = around([...nodes.map(({ id }) => boxOf(id)), seen]);
    if (!pen || !all || !root.clientWidth) {
      return;
    }
    const ratio = devicePixelRatio;
    if (canvas.width !== WIDTH * ratio) {
      [canvas.width, canvas.height] = [WIDTH * ratio, HEIGHT * ratio];
    }
    const scale = Math.min((WIDTH - 2 * MARGIN_PX) / all.width, (HEIGHT - 2 * MARGIN_PX) / all.height);
    view = { scale, x: (WIDTH - all.width * scale) / 2 - all.x * scale, y: (HEIGHT - all.height * scale) / 2 - all.y * scale };
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, WIDTH, HEIGHT);
    if (!colours.size) {
      const style = getComputedStyle(root);
      colours = new Map(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`)]));
    }
    const selected = new Set(app.store.state.selection);
    for (const { id, kind } of nodes) {
      const type = (NODE_TYPES[kind].outputs[0] ?? NODE_TYPES[kind].inputs[0])?.type;
      pen.fillStyle = colours.get(type === undefined ? "muted" : type === "text" ? "text-socket" : type) ?? "";
      pen.globalAlpha = selected.has(id) ? 1 : 0.6;
      const box = boxOf(id);
      pen.fillRect(view.x + box.x * scale, view.y + box.y * scale, Math.max(2, box.width * scale), Math.max(2, box.height * scale));
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = colours.get("accent") ?? "";
    pen.strokeRect(view.x + seen.x * scale + 0.5, view.y + seen.y * scale + 0.5, seen.width * scale, seen.height * scale);
  }
}
