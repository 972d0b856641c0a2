/**
 * Pointers on the canvas. One pointer does one thing at a time: it pans, drags nodes, drags a wire or
 * draws a box; two fingers zoom. What a pointer begins is an object with `move` and `end`.
 */

/** @import { App } from "../../types/app" */
/** @import { Box, End, SocketType } from "../../types/graph" */
/** @import { Camera } from "../../types/state" */
/** @import { Wires } from "./wires.js" */

import * as commands from "../graph/commands.js";
import { typeAt, whyNoWire } from "../graph/graph.js";
import { NODE_TYPES } from "../graph/table.js";
import { anchorAt, overlap, toWorld, zoomed } from "./geometry.js";
import { openConnect, openNodeMenu, openSearch } from "./menus.js";

/** @typedef {{x: number, y: number}} Point */
/** @typedef {{move: (point: Point, event: PointerEvent) => void, end: (point: Point, event: PointerEvent) => void, cancel?: () => void}} Gesture */
/** @typedef {{end: End, side: "in" | "out"}} SocketEnd */

/** Less than this is a click, px. */
const CLICK_PX = 4;
/** A wheel turns in larger steps than two fingers move, px. */
const WHEEL_STEP_PX = 40;
const OWN = "input, textarea, select, button, a, label, canvas, .strip, .drop, .compare-stage, .examples";

/**
 * @param {{root: HTMLElement, app: App, wires: Wires, lasso: HTMLElement, boxOf: (id: string) => Box, setCamera: (camera: Camera) => void}} options
 */
export function mountGestures({ root, app, wires, lasso, boxOf, setCamera }) {
  const { store, editor } = app;
  /** @type {Map<number, Point>} */
  const pointers = new Map();
  /** @type {Gesture | null} */
  let gesture = null;
  let drags = 0;
  let isSpaceDown = false;

  const camera = () => app.camera.state.camera;
  /** @param {{clientX: number, clientY: number}} event @returns {Point} */
  const at = ({ clientX, clientY }) => {
    const { left, top } = root.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  };

  root.addEventListener("pointerdown", (event) => {
    if (!(event.target instanceof Element) || event.target.closest(".canvas-tools, .minimap")) {
      return;
    }
    const point = at(event);
    pointers.set(event.pointerId, point);
    if (pointers.size === 2) {
      gesture?.cancel?.();
      gesture = pinch();
      event.preventDefault();
      return;
    }
    const begun = begin(event, event.target, point);
    if (begun) {
      gesture = begun;
      root.setPointerCapture(event.pointerId);
      if (document.activeElement instanceof HTMLElement && !document.activeElement.contains(event.target)) {
        document.activeElement.blur();
      }
      event.preventDefault();
    }
  });
  root.addEventListener("pointermove", (event) => {
    if (pointers.has(event.pointerId)) {
      pointers.set(event.pointerId, at(event));
      gesture?.move(at(event), event);
    }
  });
  root.addEventListener("pointerup", (event) => {
    const isOurs = pointers.delete(event.pointerId);
    if (isOurs && pointers.size === 0) {
      const done = gesture;
      gesture = null;
      done?.end(at(event), event);
    } else if (isOurs) {
      gesture = null; // a finger that stays behind does nothing
    }
  });
  root.addEventListener("pointercancel", (event) => {
    pointers.delete(event.pointerId);
    gesture?.cancel?.();
    gesture = null;
  });
  root.addEventListener("wheel", onWheel, { passive: false });
  root.addEventListener("dblclick", (event) => {
    if (event.target instanceof Element && isGround(event.target)) {
      openSearch(app, { at: { x: event.clientX, y: event.clientY }, place: toWorld(camera(), at(event)) });
    }
  });
  root.addEventListener("contextmenu", (event) => {
    if (!(event.target instanceof Element) || event.target.matches("input, textarea")) {
      return; // the browser's own menu, to paste
    }
    event.preventDefault();
    const screen = { x: event.clientX, y: event.clientY };
    const id = nodeAt(event.target);
    if (id) {
      if (!store.state.selection.includes(id)) {
        editor.select([id]);
      }
      openNodeMenu(app, { at: screen, boxOf });
    } else {
      openSearch(app, { at: screen, place: toWorld(camera(), at(event)) });
    }
  });
  // A click of the keyboard on a socket: what a drag does with the pointer.
  root.addEventListener("click", (event) => {
    const socket = event.target instanceof Element ? socketAt(event.target) : null;
    if (socket && event.detail === 0) {
      connectList(socket);
    }
  });
  document.addEventListener("keydown", (event) => {
    isSpaceDown ||= event.code === "Space" && document.activeElement === document.body;
  });
  document.addEventListener("keyup", (event) => {
    isSpaceDown = event.code === "Space" ? false : isSpaceDown;
  });

  /** @param {PointerEvent} event @param {Element} target @param {Point} point @returns {Gesture | null} */
  function begin(event, target, point) {
    if (event.button === 1 || (isSpaceDown && event.button === 0)) {
      return pan(point);
    }
    if (event.button !== 0) {
      return null;
    }
    const socket = socketAt(target);
    if (socket) {
      return dragWire(socket, point);
    }
    const id = nodeAt(target);
    if (id) {
      return target.closest(OWN) ? null : dragNodes(id, point, event);
    }
    const wire = target.closest("[data-wire]")?.getAttribute("data-wire");
    if (wire) {
      store.set({ selectedWire: wire, selection: [] });
      return pan(point);
    }
    return event.shiftKey || event.ctrlKey || event.metaKey ? drawBox(point, event) : pan(point, () => editor.select([]));
  }

  /** @param {Point} start @param {() => void} [onClick] @returns {Gesture} */
  function pan(start, onClick = () => {}) {
    const { x, y, scale } = camera();
    root.dataset.gesture = "pan";
    return {
      move: (point) => setCamera({ scale, x: x + point.x - start.x, y: y + point.y - start.y }),
      end: (point) => {
        delete root.dataset.gesture;
        if (distance(point, start) < CLICK_PX) {
          onClick();
        }
      },
      cancel: () => delete root.dataset.gesture,
    };
  }

  /** @returns {Gesture} */
  function pinch() {
    let [a, b] = [...pointers.values()];
    return {
      move: () => {
        const [now, other] = [...pointers.values()];
        if (a && b && now && other) {
          const before = middle(a, b);
          const after = middle(now, other);
          const moved = { ...camera(), x: camera().x + after.x - before.x, y: camera().y + after.y - before.y };
          setCamera(zoomed(moved, after, distance(now, other) / Math.max(1, distance(a, b))));
          [a, b] = [now, other];
        }
      },
      end: () => {},
    };
  }

  /** @param {string} id @param {Point} start @param {PointerEvent} event @returns {Gesture} */
  function dragNodes(id, start, event) {
    const isMore = event.shiftKey || event.ctrlKey || event.metaKey;
    const { selection } = store.state;
    if (isMore) {
      editor.select(selection.includes(id) ? selection.filter((other) => other !== id) : [...selection, id]);
    } else if (!selection.includes(id)) {
      editor.select([id]);
    }
    const places = Object.fromEntries(store.state.selection.flatMap((name) => (editor.graph.nodes[name] ? [[name, editor.graph.nodes[name]]] : [])));
    const series = `drag ${++drags}`;
    let isMoved = false;
    return {
      move: (point) => {
        isMoved ||= distance(point, start) >= CLICK_PX;
        if (isMoved) {
          const by = { x: (point.x - start.x) / camera().scale, y: (point.y - start.y) / camera().scale };
          const moved = Object.entries(places).map(([name, node]) => [name, { x: node.x + by.x, y: node.y + by.y }]);
          editor.do(commands.moveNodes(editor.graph, Object.fromEntries(moved), series));
        }
      },
      end: () => {
        editor.endSeries();
        if (!isMoved) {
          if (!isMore) {
            editor.select([id]);
          }
          const node = root.querySelector(`.node[data-node="${id}"]`);
          if (node instanceof HTMLElement) {
            node.focus({ preventScroll: true });
          }
        }
      },
    };
  }

  /** @param {Point} start @param {PointerEvent} event @returns {Gesture} */
  function drawBox(start, event) {
    const before = event.shiftKey ? store.state.selection : [];
    return {
      move: (point) => {
        const box = boxBetween(start, point);
        lasso.hidden = false;
        lasso.style.transform = `translate(${box.x}px, ${box.y}px)`;
        lasso.style.width = `${box.width}px`;
        lasso.style.height = `${box.height}px`;
        const a = toWorld(camera(), start);
        const b = toWorld(camera(), point);
        const inside = Object.keys(editor.graph.nodes).filter((id) => overlap(boxOf(id), boxBetween(a, b)));
        editor.select([...new Set([...before, ...inside])]);
      },
      end: () => {
        lasso.hidden = true;
      },
      cancel: () => {
        lasso.hidden = true;
      },
    };
  }

  /** A wire by one end. One that is in an input already is taken out of it. @param {SocketEnd} socket @param {Point} start @returns {Gesture | null} */
  function dragWire(socket, start) {
    const held = socket.side === "in" ? Object.values(editor.graph.wires).find(({ to }) => to.node === socket.end.node && to.socket === socket.end.socket) : undefined;
    const isMany = NODE_TYPES[editor.graph.nodes[socket.end.node]?.kind ?? "note"].inputs.some(({ name, many }) => many && name === socket.end.socket);
    const fixed = held && !isMany ? { end: held.from, side: /** @type {const} */ ("out") } : socket;
    const type = typeAt(editor.graph, fixed.end, fixed.side) ?? "text";
    let isMoved = false;
    const clean = () => {
      wires.drawLoose(null);
      delete root.dataset.wiring;
      markFitting(null, type);
    };
    return {
      move: (point, event) => {
        if (!isMoved && distance(point, start) < CLICK_PX) {
          return;
        }
        isMoved = true;
        root.dataset.wiring = type;
        markFitting(fixed, type);
        const target = targetAt(event, fixed, type);
        const anchor = anchorAt(editor.graph, fixed.end, fixed.side);
        const loose = target ? anchorAt(editor.graph, target, fixed.side === "out" ? "in" : "out") : toWorld(camera(), point);
        wires.drawLoose(fixed.side === "out" ? { from: anchor, to: loose, type, fits: true } : { from: loose, to: anchor, type, fits: true });
      },
      end: (point, event) => {
        clean();
        if (!isMoved) {
          connectList(socket);
          return;
        }
        const target = targetAt(event, fixed, type);
        if (target) {
          const [from, to] = fixed.side === "out" ? [fixed.end, target] : [target, fixed.end];
          editor.do(
            commands.together("connect", editor.graph, [
              (graph) => (held && !isMany && !(held.to.node === to.node && held.to.socket === to.socket) ? commands.disconnect(graph, [held.id]) : null),
              (graph) => commands.connect(graph, from, to),
            ]),
          );
        } else if (held && !isMany) {
          editor.do(commands.disconnect(editor.graph, [held.id]));
        } else if (isGround(document.elementFromPoint(event.clientX, event.clientY) ?? root)) {
          openSearch(app, { at: { x: event.clientX, y: event.clientY }, place: toWorld(camera(), point), end: { end: fixed.end, side: fixed.side, type } });
        } else {
          store.say("That socket takes something else.");
        }
      },
      cancel: clean,
    };
  }

  /** The end under the pointer that a wire fits: the socket, or the first one of the node that does. @param {PointerEvent} event @param {SocketEnd} fixed @param {SocketType} type @returns {End | null} */
  function targetAt(event, fixed, type) {
    const element = document.elementFromPoint(event.clientX, event.clientY);
    const id = element && nodeAt(element);
    const node = id ? editor.graph.nodes[id] : undefined;
    if (!element || !node) {
      return null;
    }
    const over = socketAt(element)?.end.socket;
    const sockets = fixed.side === "out" ? NODE_TYPES[node.kind].inputs : NODE_TYPES[node.kind].outputs;
    const first = sockets.find(({ name }) => name === over) ?? sockets.find((socket) => socket.type === type);
    const end = first && { node: node.id, socket: first.name };
    const isFree = end && (fixed.side === "out" ? whyNoWire(editor.graph, fixed.end, end) : whyNoWire(editor.graph, end, fixed.end)) === "";
    return end && isFree ? end : null;
  }

  /** Sockets that a wire fits stand out. @param {SocketEnd | null} fixed @param {SocketType} type */
  function markFitting(fixed, type) {
    for (const socket of root.querySelectorAll(".socket")) {
      const fits = fixed !== null && socket.getAttribute("data-type") === type && socket.getAttribute("data-side") !== fixed.side;
      socket.toggleAttribute("data-fits", fits);
    }
  }

  /** @param {SocketEnd} socket */
  function connectList({ end, side }) {
    const element = root.querySelector(`[data-node="${end.node}"] .socket[data-socket="${end.socket}"][data-side="${side}"]`);
    const type = typeAt(editor.graph, end, side);
    const box = element?.getBoundingClientRect();
    if (box && type) {
      const node = editor.graph.nodes[end.node];
      const width = NODE_TYPES[node?.kind ?? "note"].width;
      const place = { x: (node?.x ?? 0) + (side === "out" ? width + 90 : -90), y: (node?.y ?? 0) + 60 };
      openConnect(app, end, side, type, { x: box.left, y: box.bottom + 4 }, place);
    }
  }

  /** @param {WheelEvent} event */
  function onWheel(event) {
    const target = event.target instanceof Element ? event.target : null;
    if (!event.ctrlKey && target?.closest(".canvas-tools, textarea:focus, select:focus")) {
      return;
    }
    event.preventDefault();
    const { deltaX, deltaY, deltaMode, ctrlKey, shiftKey } = event;
    const isWheel = deltaMode !== 0 || (deltaX === 0 && Math.abs(deltaY) >= WHEEL_STEP_PX && Number.isInteger(deltaY));
    const now = camera();
    if (ctrlKey || (isWheel && !shiftKey)) {
      const strength = ctrlKey && !isWheel ? 0.01 : 0.0016;
      setCamera(zoomed(now, at(event), Math.exp(-deltaY * (deltaMode ? 20 : 1) * strength)));
    } else {
      const [dx, dy] = shiftKey && !deltaX ? [deltaY, 0] : [deltaX, deltaY];
      setCamera({ ...now, x: now.x - dx, y: now.y - dy });
    }
  }

  /** @param {Element} target */
  function isGround(target) {
    return !target.closest(".node, [data-wire], .canvas-tools, .minimap");
  }
}

/** @param {Element} target @returns {SocketEnd | null} */
function socketAt(target) {
  const socket = target.closest(".socket");
  const node = socket && nodeAt(socket);
  const name = socket?.getAttribute("data-socket");
  return node && name ? { end: { node, socket: name }, side: socket.getAttribute("data-side") === "in" ? "in" : "out" } : null;
}

/** @param {Element} target */
function nodeAt(target) {
  return target.closest(".node")?.getAttribute("data-node") ?? null;
}

/** @param {Point} a @param {Point} b */
function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

/** @param {Point} a @param {Point} b */
function middle(a, b) {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

/** @param {Point} a @param {Point} b @returns {Box} */
function boxBetween(a, b) {
  return { x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) };
}
