/** Whether the service answers. Asks again and again, and notices when another call gets no answer. */

/** @import { Problem, ServiceClient } from "./api.js" */
/** @import { ServiceState, State } from "../types/state" */
/** @import { Store } from "./store.js" */

import { Unreachable } from "./api.js";
import { Pause } from "./pause.js";

const READY_MS = 4000;
const HIDDEN_MS = 15_000;
const TROUBLE_MS = 1000;

/** Whether calls make sense now. @param {State} state */
export function isReachable({ service }) {
  return service.phase === "ready" || service.phase === "waiting";
}

export class Connection {
  #client;
  #store;
  #pause = new Pause();

  /** @param {ServiceClient} client @param {Store} store */
  constructor(client, store) {
    this.#client = client;
    this.#store = store;
  }

  /** Whether files must be fetched with the key, and cannot be named in `src` or `href`. */
  get sendsKey() {
    return this.#client.sendsKey;
  }

  /** @param {string} path */
  url(path) {
    return this.#client.url(path);
  }

  async run() {
    document.addEventListener("visibilitychange", () => this.#pause.wake());
    for (;;) {
      await this.#check();
      await this.#pause.wait(this.#untilNextCheck());
    }
  }

  /**
   * The answer of a call. One that got none, or that wants a key, tells the whole page.
   * @template T
   * @param {(client: ServiceClient) => Promise<T>} call
   */
  async ask(call) {
    try {
      return await call(this.#client);
    } catch (error) {
      const wasReachable = isReachable(this.#store.state);
      this.#judge(error);
      if (wasReachable && !isReachable(this.#store.state)) {
        this.#pause.wake();
      }
      throw error;
    }
  }

  /** @param {string} key */
  useKey(key) {
    this.#store.set({ key, keyError: "", isKeyAsked: false });
    this.#set({ phase: "connecting" });
    this.#pause.wake();
  }

  async #check() {
    const { phase } = this.#store.state.service;
    if (phase === "locked") {
      return;
    }
    try {
      const health = await this.#client.ready();
      if (phase !== "ready" && !(phase === "waiting" && health.reason)) {
        // After an absence it may be another version, with other models.
        const [info, { models }] = await Promise.all([this.#client.info(), this.#client.models()]);
        this.#set({ info, models });
      }
      this.#set({ phase: health.reason ? "waiting" : "ready", reason: health.reason ?? "" });
    } catch (error) {
      this.#judge(error);
      if (!(error instanceof Unreachable) && this.#store.state.service.phase !== "locked") {
        this.#set({ phase: "down", reason: error instanceof Error ? error.message : "" });
      }
    }
  }

  /** @param {unknown} error */
  #judge(error) {
    if (error instanceof Unreachable) {
      this.#set({ phase: "down", reason: "" });
    } else if (isKeyProblem(error) && this.#store.state.service.phase !== "locked") {
      this.#store.set({
        key: "",
        isKeyAsked: true,
        keyError: this.#store.state.key ? error.message : "",
      });
      this.#set({ phase: "locked" });
    }
  }

  #untilNextCheck() {
    const { phase } = this.#store.state.service;
    if (phase === "locked") {
      return undefined;
    }
    if (phase !== "ready") {
      return TROUBLE_MS;
    }
    return document.hidden ? HIDDEN_MS : READY_MS;
  }

  /** @param {Partial<ServiceState>} patch */
  #set(patch) {
    const { service } = this.#store.state;
    const names = /** @type {(keyof ServiceState)[]} */ (Object.keys(patch));
    if (names.some((name) => patch[name] !== service[name])) {
      this.#store.set({ service: { ...service, ...patch } });
    }
  }
}

/** @param {unknown} error @returns {error is Problem} */
function isKeyProblem(error) {
  return error instanceof Error && "status" in error && error.status === 401;
}
