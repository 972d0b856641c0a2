/** The only module that talks to a service. */

/** @import { FieldError, GenerateBody, Health, Info, Job, Lora, LoraInList, Model, QueueState, StoredImage } from "../types/api" */

import { readEvents } from "./event_stream.js";

const TIMEOUT_MS = 15_000;
const FILE_TIMEOUT_MS = 120_000;
/** Loading twelve billion weights takes minutes. */
const LOAD_TIMEOUT_MS = 900_000;

/** The service did not answer. */
export class Unreachable extends Error {}

/** The service answered that something is wrong. */
export class Problem extends Error {
  /**
   * @param {string} message
   * @param {{status: number, code?: string, fields?: FieldError[]}} facts
   */
  constructor(message, { status, code = "", fields = [] }) {
    super(message);
    this.status = status;
    this.code = code;
    this.fields = fields;
  }
}

export class ServiceClient {
  #readKey;

  /**
   * @param {string} address origin of the service
   * @param {() => string} readKey the key to send; "" for none
   */
  constructor(address, readKey) {
    this.address = address;
    this.#readKey = readKey;
  }

  get sendsKey() {
    return this.#readKey() !== "";
  }

  /** @param {string} path */
  url(path) {
    return this.address + path;
  }

  /** What program this is; answered without a key. @returns {Promise<{service: string}>} */
  live() {
    return this.#json("/health/live");
  }

  /** Whether a job can be taken now. 503 is an answer here and no problem. @returns {Promise<Health>} */
  async ready() {
    const response = await this.#fetch("/health/ready");
    if (response.ok || response.status === 503) {
      return readJson(response);
    }
    throw await problemOf(response);
  }

  /** @returns {Promise<Info>} */
  info() {
    return this.#json("/info");
  }

  /** @returns {Promise<{models: Model[]}>} */
  models() {
    return this.#json("/api/models");
  }

  /**
   * @param {GenerateBody} body
   * @param {string} idempotencyKey
   * @returns {Promise<{id: string, status: string, position: number | null}>}
   */
  submit(body, idempotencyKey) {
    return this.#json("/jobs", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey },
      body: JSON.stringify(body),
    });
  }

  /** @param {string} id @returns {Promise<Job>} */
  job(id) {
    return this.#json(`/jobs/${encodeURIComponent(id)}`);
  }

  /** @param {string} id @returns {Promise<{cancelled: boolean, status: string}>} */
  cancel(id) {
    return this.#json(`/jobs/${encodeURIComponent(id)}/cancel`, { method: "POST" });
  }

  /** @param {string} id @returns {Promise<{id: string, status: string, position: number | null}>} */
  retry(id) {
    return this.#json(`/jobs/${encodeURIComponent(id)}/retry`, { method: "POST" });
  }

  /** @returns {Promise<QueueState>} */
  queue() {
    return this.#json("/queue");
  }

  /** @param {"pause" | "resume" | "clear"} what @returns {Promise<QueueState>} */
  changeQueue(what) {
    return this.#json(`/queue/${what}`, { method: "POST" });
  }

  /** Everything that happens, until the stream ends. @param {(event: import("./event_stream.js").StreamEvent) => void} onEvent @param {AbortSignal} signal */
  async events(onEvent, signal) {
    const response = await this.#fetch("/events", { signal });
    if (!response.ok || !response.body) {
      throw await problemOf(response);
    }
    await whileReading(readEvents(response.body, onEvent));
  }

  /**
   * Pictures, newest first, older than `before`, whose prompt has the words.
   * @param {{limit: number, before?: string, words?: string}} page
   * @returns {Promise<{images: StoredImage[]}>}
   */
  images({ limit, before, words }) {
    const query = new URLSearchParams({ limit: String(limit), ...(before ? { before } : {}), ...(words ? { q: words } : {}) });
    return this.#json(`/images?${query}`);
  }

  /** @returns {Promise<{loras: LoraInList[]}>} */
  loras() {
    return this.#json("/loras");
  }

  /** @param {string} name @param {{name?: string, trigger_words?: string[]}} changes @returns {Promise<Lora>} */
  changeLora(name, changes) {
    return this.#json(`/loras/${encodeURIComponent(name)}`, {
      method: "PATCH",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(changes),
    });
  }

  /** @param {string} name */
  async deleteLora(name) {
    const response = await this.#fetch(`/loras/${encodeURIComponent(name)}`, { method: "DELETE" });
    if (!response.ok) {
      throw await problemOf(response);
    }
  }

  /**
   * Sends a file as it is, telling how far it is. `fetch` cannot tell, so this is the older way.
   * @param {File} file
   * @param {(fraction: number) => void} onProgress
   * @returns {Promise<Lora>}
   */
  uploadLora(file, onProgress) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("PUT", this.url(`/loras/${encodeURIComponent(file.name)}`));
      const key = this.#readKey();
      if (key) {
        request.setRequestHeader("X-API-Key", key);
      }
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 0));
      request.addEventListener("load", () => {
        const response = new Response(request.responseText, { status: request.status });
        (response.ok ? readJson(response) : problemOf(response).then((problem) => Promise.reject(problem))).then(resolve, reject);
      });
      request.addEventListener("error", () => reject(new Unreachable(`${this.address} does not answer`)));
      request.send(file);
    });
  }

  /** @param {string} model */
  loadModel(model) {
    return this.#json("/load-model", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model }),
      signal: AbortSignal.timeout(LOAD_TIMEOUT_MS),
    });
  }

  unloadModel() {
    return this.#json("/unload-model", { method: "POST", signal: AbortSignal.timeout(LOAD_TIMEOUT_MS) });
  }

  /** @param {string} id */
  async deleteImage(id) {
    const response = await this.#fetch(`/images/${encodeURIComponent(id)}`, { method: "DELETE" });
    if (!response.ok) {
      throw await problemOf(response);
    }
  }

  /** The description of all routes. @returns {Promise<any>} */
  openapi() {
    return this.#json("/openapi.json");
  }

  /** A file, with the key in the header. @param {string} path */
  async blob(path) {
    const response = await this.#fetch(path, {
      cache: "default", // a picture never changes under its name
      signal: AbortSignal.timeout(FILE_TIMEOUT_MS),
    });
    if (!response.ok) {
      throw await problemOf(response);
    }
    return whileReading(response.blob());
  }

  /** @param {string} path @param {RequestInit} [options] */
  async #json(path, options) {
    const response = await this.#fetch(path, options);
    if (!response.ok) {
      throw await problemOf(response);
    }
    return readJson(response);
  }

  /** @param {string} path @param {RequestInit} [options] */
  async #fetch(path, options = {}) {
    const headers = new Headers(options.headers);
    const key = this.#readKey();
    if (key) {
      headers.set("X-API-Key", key);
    }
    try {
      return await fetch(this.url(path), {
        cache: "no-store",
        credentials: "omit",
        redirect: "error", // a key goes to the address it was given for and nowhere else
        signal: AbortSignal.timeout(TIMEOUT_MS),
        ...options,
        headers,
      });
    } catch (error) {
      throw new Unreachable(`${this.address} does not answer`, { cause: error });
    }
  }
}

/** @param {Response} response */
async function readJson(response) {
  const text = await whileReading(response.text());
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem("the answer is not JSON; another program may use this address", {
      status: response.status,
    });
  }
}

/** @param {Response} response */
async function problemOf(response) {
  const text = await whileReading(response.text());
  try {
    const body = JSON.parse(text);
    return new Problem(String(body.detail ?? body.title ?? `HTTP ${response.status}`), {
      status: response.status,
      code: body.code,
      fields: body.errors,
    });
  } catch {
    return new Problem(`the service answered with HTTP ${response.status}`, {
      status: response.status,
    });
  }
}

/** A connection may break in the middle of an answer. @template T @param {Promise<T>} body */
async function whileReading(body) {
  try {
    return await body;
  } catch (error) {
    throw new Unreachable("the answer broke off", { cause: error });
  }
}
