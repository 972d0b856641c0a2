/** A list at the pointer: to search in, to walk through with the arrow keys, to leave with Escape. */

import { find, icon, make, newId } from "../dom.js";

/**
 * @typedef {object} MenuItem
 * @property {string} words
 * @property {string} [hint]
 * @property {string} [icon]
 * @property {string} [type] of a socket, for the colour
 * @property {string} [keys] that do the same
 * @property {boolean} [off]
 * @property {() => void} act
 */

/** @type {(() => void) | null} */
let closeOpen = null;

/**
 * @param {{at: {x: number, y: number}, label: string, items: readonly MenuItem[], search?: boolean, onClose?: () => void}} options
 * `at`: on the screen, px
 */
export function openMenu({ at, label, items, search = false, onClose = () => {} }) {
  closeOpen?.();
  const before = document.activeElement;
  const listId = newId();
  const filter = make("input", { type: "text", class: "menu-search", placeholder: "Search", "aria-label": label, role: "combobox", "aria-expanded": "true", "aria-controls": listId, autocomplete: "off", spellcheck: "false" });
  const list = make("ul", { role: search ? "listbox" : "menu", id: listId, "aria-label": label });
  const menu = make("div", { class: "menu" }, ...(search ? [filter] : []), list);
  let shown = items;
  let current = 0;

  const close = () => {
    if (menu.isConnected) {
      menu.remove();
      document.removeEventListener("pointerdown", outside, true);
      closeOpen = null;
      if (before instanceof HTMLElement && (document.activeElement === document.body || document.activeElement === null)) {
        before.focus({ preventScroll: true });
      }
      onClose();
    }
  };
  const outside = (/** @type {Event} */ event) => {
    if (!(event.target instanceof Node && menu.contains(event.target))) {
      close();
    }
  };
  const choose = (/** @type {MenuItem | undefined} */ item) => {
    if (item && !item.off) {
      close();
      item.act();
    }
  };
  const render = () => {
    const wanted = filter.value.trim().toLowerCase();
    shown = items.filter(({ words, hint }) => `${words} ${hint ?? ""}`.toLowerCase().includes(wanted));
    current = Math.min(current, Math.max(0, shown.length - 1));
    list.replaceChildren(...shown.map((item, index) => row(item, index)));
    if (!shown.length) {
      list.append(make("li", { class: "menu-none" }, "Nothing found"));
    }
    mark();
  };
  const mark = () => {
    const rows = [...list.querySelectorAll("[data-index]")];
    rows.forEach((each, index) => each.setAttribute("aria-selected", String(index === current)));
    const row = rows[current];
    row?.scrollIntoView({ block: "nearest" });
    if (search) {
      filter.setAttribute("aria-activedescendant", row?.id ?? "");
    } else if (row instanceof HTMLElement) {
      row.focus({ preventScroll: true });
    }
  };

  /** @param {MenuItem} item @param {number} index */
  function row(item, index) {
    const element = make(
      "li",
      { role: search ? "option" : "menuitem", id: newId(), "data-index": index, tabindex: -1, "aria-disabled": Boolean(item.off) && "true", ...(item.type ? { "data-type": item.type } : {}) },
      ...(item.type ? [make("span", { class: "dot" })] : item.icon ? [icon(item.icon)] : []),
      make("span", { class: "menu-words" }, item.words),
      ...(item.hint ? [make("small", {}, item.hint)] : []),
      ...(item.keys ? [make("kbd", {}, item.keys)] : []),
    );
    element.addEventListener("click", () => choose(item));
    element.addEventListener("pointermove", () => {
      if (current !== index) {
        current = index;
        mark();
      }
    });
    return element;
  }

  filter.addEventListener("input", () => {
    current = 0;
    render();
  });
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      current = (current + step + shown.length) % Math.max(1, shown.length);
      mark();
    } else if (event.key === "Enter" || (event.key === " " && !search)) {
      choose(shown[current]);
    } else if (event.key === "Escape" || event.key === "Tab") {
      close();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  document.body.append(menu);
  closeOpen = close;
  render();
  const { width, height } = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(8, Math.min(at.x, innerWidth - width - 8))}px`;
  menu.style.top = `${Math.max(8, Math.min(at.y, innerHeight - height - 8))}px`;
  (search ? filter : find("[data-index]", HTMLElement, list)).focus({ preventScroll: true });
  document.addEventListener("pointerdown", outside, true);
}

/** A menu below a button. @param {Element} element */
export function below(element) {
  const { left, bottom } = element.getBoundingClientRect();
  return { x: left, y: bottom + 6 };
}
