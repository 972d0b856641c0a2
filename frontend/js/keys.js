/** Keys of the whole page. */

/** @import { App } from "../types/app" */
/** @import { Panel } from "../types/state" */

import { isTyping } from "./dom.js";
import * as commands from "./graph/commands.js";
import { togglePanel } from "./views/topbar.js";

const STEP_PX = 10;
/** @type {Readonly<Record<string, {x: number, y: number}>>} */
const ARROWS = { ArrowLeft: { x: -1, y: 0 }, ArrowRight: { x: 1, y: 0 }, ArrowUp: { x: 0, y: -1 }, ArrowDown: { x: 0, y: 1 } };
/** @type {Readonly<Record<string, Panel>>} */
const PANEL_KEYS = { g: "gallery", l: "loras", q: "queue", m: "machine", w: "workflows" };

/**
 * @param {App} app
 * @param {{fit: () => void, zoom: (factor: number) => void, actualSize: () => void, search: () => void}} canvas
 * @param {() => void} openHelp
 */
export function mountKeys(app, canvas, openHelp) {
  const { store, editor, runs } = app;
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) {
      return;
    }
    const isCommand = event.ctrlKey || event.metaKey;
    const act = isCommand ? commandKey(event) : event.altKey ? undefined : plainKey(event);
    if (act) {
      event.preventDefault();
      act();
    }
  });

  /** @param {KeyboardEvent} event @returns {(() => void) | undefined} */
  function commandKey({ key, shiftKey, target }) {
    const name = key.toLowerCase();
    if (name === "enter") {
      return () => void runs.start();
    }
    if (isTyping(target) && target instanceof Element && !target.closest("[data-node]")) {
      return undefined; // a search field undoes by itself
    }
    if (name === "z") {
      return () => (shiftKey ? editor.redo() : editor.undo()); // of the whole graph: what is typed is a part of it
    }
    if (name === "y") {
      return () => editor.redo();
    }
    if (isTyping(target) || store.state.view !== "canvas") {
      return undefined;
    }
    const isTextSelected = !document.getSelection()?.isCollapsed;
    /** @type {Record<string, () => void>} */
    const acts = {
      a: () => editor.select(Object.keys(editor.graph.nodes)),
      v: () => editor.paste(),
      d: () => editor.duplicate(),
      ...(isTextSelected
        ? {}
        : {
            c: () => void (editor.copy() && store.say("Copied.")),
            x: () => {
              editor.copy();
              editor.deleteSelected();
            },
          }),
    };
    return acts[name];
  }

  /** @param {KeyboardEvent} event @returns {(() => void) | undefined} */
  function plainKey({ key, target, shiftKey }) {
    if (key === "Escape") {
      return () => {
        if (isTyping(document.activeElement) && document.activeElement instanceof HTMLElement) {
          document.activeElement.blur();
        } else if (store.state.selection.length || store.state.selectedWire) {
          editor.select([]);
        } else {
          store.set({ panel: null });
        }
      };
    }
    if (isTyping(target)) {
      return undefined;
    }
    if (key === "?") {
      return openHelp;
    }
    if (key === "v") {
      return () => store.set({ view: store.state.view === "canvas" ? "form" : "canvas" });
    }
    const panel = PANEL_KEYS[key];
    if (panel) {
      return () => togglePanel(app, panel);
    }
    return store.state.view === "canvas" ? canvasKey(key, target, shiftKey) : undefined;
  }

  /** @param {string} key @param {EventTarget | null} target @param {boolean} isLarge @returns {(() => void) | undefined} */
  function canvasKey(key, target, isLarge) {
    const { selection, selectedWire } = store.state;
    const arrow = ARROWS[key];
    const focused = target instanceof Element ? target.closest(".node")?.getAttribute("data-node") : null;
    const moved = selection.length ? selection : focused ? [focused] : [];
    const isOther = target instanceof HTMLInputElement || (target instanceof Element && target.closest("[role=radiogroup], .panel"));
    if (arrow && moved.length && !isOther) {
      const by = isLarge ? 10 * STEP_PX : STEP_PX;
      const places = moved.flatMap((id) => (editor.graph.nodes[id] ? [[id, { x: editor.graph.nodes[id].x + arrow.x * by, y: editor.graph.nodes[id].y + arrow.y * by }]] : []));
      return () => editor.do(commands.moveNodes(editor.graph, Object.fromEntries(places), `keys ${moved.join()}`));
    }
    if ((key === "Delete" || key === "Backspace") && (moved.length || selectedWire)) {
      return () => (selection.length || selectedWire ? editor.deleteSelected() : editor.do(commands.removeNodes(editor.graph, moved)));
    }
    if ((key === " " || key === "Enter") && target instanceof Element && target.classList.contains("node") && focused) {
      return () => editor.select(selection.includes(focused) ? selection.filter((id) => id !== focused) : [...selection, focused]);
    }
    /** @type {Record<string, () => void>} */
    const acts = {
      a: canvas.search,
      f: canvas.fit,
      0: canvas.actualSize,
      "+": () => canvas.zoom(1.25),
      "=": () => canvas.zoom(1.25),
      "-": () => canvas.zoom(1 / 1.25),
      c: () => {
        const isCollapsed = moved.every((id) => editor.graph.nodes[id]?.collapsed);
        editor.do(commands.collapse(editor.graph, moved, !isCollapsed));
      },
    };
    return acts[key];
  }
}
