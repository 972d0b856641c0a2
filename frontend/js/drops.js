/** Files that are dropped anywhere on the page, or pasted. */

/** @import { App } from "../types/app" */

import { find } from "./dom.js";

/** @param {App} app @param {{placeOf: (event: {clientX: number, clientY: number}) => {x: number, y: number}, element: HTMLElement}} canvas */
export function mountDrops({ store, opener }, canvas) {
  const veil = find("#veil", HTMLElement);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer?.types.includes("Files")) {
      event.preventDefault();
      veil.hidden = false;
      clearTimeout(timer);
      timer = setTimeout(() => (veil.hidden = true), 200); // while the pointer is here the event comes again and again
    }
  });
  document.addEventListener("drop", (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    veil.hidden = true;
    if (files.length && !event.defaultPrevented) {
      event.preventDefault();
      const isOnCanvas = store.state.view === "canvas" && event.target instanceof Node && canvas.element.contains(event.target);
      const hasNodes = isOnCanvas && event.target instanceof Element && event.target.closest(".node");
      void opener.open(files, isOnCanvas && !hasNodes ? canvas.placeOf(event) : null);
    }
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      void opener.open(files);
    }
  });
}
