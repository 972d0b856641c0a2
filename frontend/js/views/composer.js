/** The prompt, the examples, the button; Enter runs. */

/** @import { Runs } from "../runs.js" */
/** @import { Store } from "../store.js" */

import { find, keep, make } from "../dom.js";
import { inShort } from "../format.js";
import { bodyOf, modelOf } from "../request.js";
import { numberAtFault } from "./settings.js";

/** @param {Store} store @param {Runs} runs */
export function mountComposer(store, runs) {
  const form = find("#composer", HTMLFormElement);
  const prompt = find("#prompt", HTMLTextAreaElement);
  const stage = find("#stage", HTMLElement);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    store.set({ fieldErrors: {}, formError: "" });
    const wrong = whatIsWrong(store);
    if (wrong) {
      store.set({ fieldErrors: wrong });
      return;
    }
    const { draft, service } = store.state;
    runs.start(bodyOf(draft, modelOf(draft, service)));
    bringIntoView(stage);
  });
  prompt.addEventListener("keydown", (event) => {
    const isPlainEnter = event.key === "Enter" && !event.shiftKey && !event.altKey;
    if (isPlainEnter && !event.isComposing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    const isRun = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (isRun && !event.isComposing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  prompt.addEventListener("input", () => store.setDraft({ prompt: prompt.value }));
  store.watch(
    ({ draft }) => [draft.prompt],
    (text) => {
      if (prompt.value !== text) {
        prompt.value = text;
      }
    },
  );
}

/** What the page can tell by itself. All else the service judges. @param {Store} store */
function whatIsWrong(store) {
  if (!store.state.draft.prompt.trim()) {
    return { prompt: "Write what the picture should show, or click an example." };
  }
  const field = numberAtFault();
  return field ? { [field]: "This is not a number." } : null;
}

/** On a small screen the picture is below the form. @param {HTMLElement} stage */
function bringIntoView(stage) {
  if (stage.getBoundingClientRect().bottom > innerHeight + 40 && innerWidth < 900) {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    stage.scrollIntoView({ behavior: isCalm ? "instant" : "smooth", block: "start" });
  }
}

/** What draws here and what it can draw, and examples of it. @param {Store} store */
export function mountAbout(store) {
  const why = find("#why", HTMLElement);
  const about = find("#about", HTMLElement);
  const examples = find("#examples", HTMLElement);
  const prompt = find("#prompt", HTMLTextAreaElement);
  store.watch(
    ({ service, draft }) => [modelOf(draft, service), service.info],
    (model, info) => {
      const reason = model?.is_default ? info?.default_model_reason : "chosen in the settings";
      why.replaceChildren(
        ...(model ? [make("strong", {}, model.title), `: ${inShort(reason ?? "")}.`] : []),
      );
      about.textContent = model?.description ?? "";
      keep(examples, model?.example_prompts ?? [], String, example);
    },
  );

  /** @param {string} text */
  function example(text) {
    const button = make("button", { class: "example", type: "button" }, text);
    button.addEventListener("click", () => {
      store.setDraft({ prompt: text });
      prompt.focus();
    });
    return button;
  }
}

/** The service's words about a field at that field; about the rest above the button. @param {Store} store */
export function mountErrors(store) {
  const settings = find("#settings", HTMLDetailsElement);
  const formError = find("#form-error", HTMLElement);
  const fields = [...document.querySelectorAll("[data-field]")].map((box) => fieldOf(box, store));
  /** @type {Readonly<Record<string, string>>} */
  let before = {};
  store.watch(
    ({ fieldErrors, formError }) => [fieldErrors, formError],
    (fieldErrors, text) => {
      const isNews = Object.keys(fieldErrors).some((name) => !(name in before));
      before = fieldErrors;
      for (const { name, control, error } of fields) {
        const message = fieldErrors[name] ?? "";
        error.hidden = !message;
        error.textContent = message;
        control.setAttribute("aria-invalid", String(Boolean(message)));
      }
      const first = fields.find(({ name }) => fieldErrors[name]);
      const isAllAtFields = Object.keys(fieldErrors).every((field) =>
        fields.some(({ name }) => name === field),
      );
      formError.textContent = first && isAllAtFields ? "" : text;
      formError.hidden = !formError.textContent;
      if (first && isNews) {
        settings.open ||= settings.contains(first.control);
        first.control.focus({ preventScroll: true });
        first.box.scrollIntoView({ block: "nearest" }); // with the words below the field
      }
    },
  );
}

/** @param {Element} box @param {Store} store */
function fieldOf(box, store) {
  const name = box.getAttribute("data-field") ?? "";
  const control = find(`#${name}`, HTMLElement, box);
  const error = make("p", { class: "error", id: `${name}-error`, hidden: true });
  box.append(error);
  control.setAttribute("aria-describedby", error.id);
  box.addEventListener("input", () => {
    const { [name]: mine, ...others } = store.state.fieldErrors;
    if (mine !== undefined) {
      store.set({ fieldErrors: others, formError: "" });
    }
  });
  return { name, box, control, error };
}
