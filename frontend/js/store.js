/** The page's mutable state, all of it. Values are replaced, never changed in place. */

/** @import { Draft, State } from "../types/state" */

/** @type {Readonly<Draft>} */
export const EMPTY_DRAFT = Object.freeze({
  prompt: "",
  negative_prompt: "",
  model: null,
  width: null,
  height: null,
  num_inference_steps: null,
  guidance_scale: null,
  true_cfg_scale: null,
  seed_mode: "random",
  seed: "",
  num_images: null,
  output_format: "png",
});

/** @returns {State} */
export function initialState() {
  return {
    service: { phase: "connecting", reason: "", info: null, models: [] },
    key: "",
    isKeyAsked: false,
    keyError: "",
    draft: EMPTY_DRAFT,
    fieldErrors: {},
    formError: "",
    runs: [],
    shown: null,
    shownId: null,
    gallery: { images: [], isComplete: false, isLoading: false, error: "", isKnown: false },
    viewed: null,
    message: null,
    announcement: "",
  };
}

export class Store {
  #state;
  /** @type {Set<() => void>} */
  #watchers = new Set();

  /** @param {State} state */
  constructor(state) {
    this.#state = state;
  }

  get state() {
    return this.#state;
  }

  /** @param {Partial<State>} patch */
  set(patch) {
    this.#state = { ...this.#state, ...patch };
    for (const notice of this.#watchers) {
      notice();
    }
  }

  /** @param {Partial<Draft>} patch */
  setDraft(patch) {
    this.set({ draft: { ...this.#state.draft, ...patch } });
  }

  /** To eyes and screen readers, for a moment. @param {string} text */
  say(text) {
    this.set({ message: { text } });
  }

  /**
   * Calls `react` now, and whenever one of the selected values is another one than before.
   * @template {unknown[]} T
   * @param {(state: State) => [...T]} select
   * @param {(...values: NoInfer<T>) => void} react
   */
  watch(select, react) {
    let seen = select(this.#state);
    this.#watchers.add(() => {
      const now = select(this.#state);
      if (now.some((value, index) => !Object.is(value, seen[index]))) {
        seen = now;
        react(...now);
      }
    });
    react(...seen);
  }
}
