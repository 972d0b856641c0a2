/** The one way to the document. Text goes in as text: there is no way here to insert markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The element, which must be there and of this type.
 * @template {Element} T
 * @param {string} selector
 * @param {abstract new (...args: any[]) => T} type
 * @param {ParentNode} [root]
 * @returns {T}
 */
export function find(selector, type, root = document) {
  const found = root.querySelector(selector);
  if (!(found instanceof type)) {
    throw new Error(`${selector} is ${found ? `a ${found.tagName}, no ${type.name}` : "missing"}`);
  }
  return found;
}

/**
 * A new element. Attributes that are `false` are left out; children that are strings become text.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean>} [attributes]
 * @param {...(Node | string)} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on") || name === "style") {
      throw new Error(`${name} is no attribute to set here`);
    }
    if (value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children);
  return element;
}

/** A drawing of the sprite in index.html, for the eye only. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon, or words, or both. @param {{label: string, icon?: string, words?: string, kind?: string, act: (event: MouseEvent) => void}} options */
export function button({ label, icon: name, words = "", kind = "quiet", act }) {
  const element = make("button", { type: "button", class: kind, ...(words === label ? {} : { "aria-label": label, title: label }) });
  element.append(...(name ? [icon(name)] : []), ...(words ? [words] : []));
  element.addEventListener("click", act);
  return element;
}

let lastId = 0;

/** An id that no other element has. */
export function newId() {
  return `e${++lastId}`;
}

/** Whether keys belong to what is typed here. @param {EventTarget | null} target */
export function isTyping(target) {
  return (
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && !["checkbox", "radio", "button", "range"].includes(target.type))
  );
}

/** The first field of a node, as soon as its body is there. @param {Element | null} node */
export function focusFirstField(node) {
  const body = node?.querySelector(".node-body");
  const field = body?.querySelector("textarea, select, input");
  const target = field ?? node;
  if (target instanceof HTMLElement) {
    target.focus({ preventScroll: true });
  }
  if (body && !field && !body.children.length) {
    const focused = document.activeElement;
    new MutationObserver((_, observer) => {
      observer.disconnect();
      if (document.activeElement === focused) {
        focusFirstField(node);
      }
    }).observe(body, { childList: true });
  }
}

/** Asks for files. @param {{accept: string, many: boolean}} options @returns {Promise<File[]>} */
export function chooseFiles({ accept, many }) {
  return new Promise((resolve) => {
    const input = make("input", { type: "file", accept, multiple: many, class: "unseen", "aria-label": "Files" });
    input.addEventListener("change", () => {
      resolve([...(input.files ?? [])]);
      input.remove();
    });
    input.addEventListener("cancel", () => input.remove());
    document.body.append(input); // a browser may drop one that is nowhere
    input.click();
  });
}

/**
 * Brings the children of `parent` in step with `items`. Elements of items that stay are kept, so
 * that focus and loaded pictures stay with them.
 * @template T
 * @template {HTMLElement} E
 * @param {Element} parent
 * @param {readonly T[]} items
 * @param {(item: T) => string} keyOf
 * @param {(item: T) => E} create
 * @param {(element: E, item: T) => void} [update]
 */
export function keep(parent, items, keyOf, create, update = () => {}) {
  const wanted = new Set(items.map(keyOf));
  const there = new Map();
  for (const child of [...parent.children]) {
    const key = child.getAttribute("data-key") ?? "";
    if (wanted.has(key)) {
      there.set(key, child);
    } else {
      child.remove();
    }
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    /** @type {E} */
    const element = there.get(key) ?? create(item);
    element.dataset.key = key;
    update(element, item);
    if (element === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(element, place);
    }
  }
}
