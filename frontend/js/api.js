/** Talks to the service; nothing else in the page does. */

/** An answer that is an error: what the service says, and which fields are at fault. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 when nothing answered
   * @param {string} detail
   * @param {{field: string, message: string}[]} fields
   */
  constructor(status, detail, fields = []) {
    super(detail);
    this.status = status;
    this.fields = fields;
  }
}

const KEY_STORAGE = "flux-api-key";

export class Api {
  /** @param {string} base origin of the service */
  constructor(base) {
    this.base = base;
    this.key = sessionStorage.getItem(KEY_STORAGE) ?? "";
    /** @type {Map<string, Promise<string>>} */
    this.blobs = new Map();
  }

  /** @param {string} key */
  setKey(key) {
    this.key = key;
    sessionStorage.setItem(KEY_STORAGE, key);
  }

  /** @param {string} path @returns {Promise<any>} */
  get(path) {
    return this.#json("GET", path);
  }

  /** @param {string} path @param {unknown} [body] @returns {Promise<any>} */
  post(path, body) {
    return this.#json("POST", path, body);
  }

  /** @param {string} path @returns {Promise<any>} */
  remove(path) {
    return this.#json("DELETE", path);
  }

  /**
   * An address an <img> can show. With a key the picture is fetched, because an <img> sends none.
   * @param {string} path
   * @returns {Promise<string>}
   */
  async image(path) {
    if (!this.key) return this.base + path;
    let blob = this.blobs.get(path);
    if (!blob) {
      blob = this.#fetch("GET", path).then(async (answer) => URL.createObjectURL(await answer.blob()));
      this.blobs.set(path, blob);
    }
    return blob;
  }

  /** @param {string} method @param {string} path @param {unknown} [body] */
  async #json(method, path, body) {
    const answer = await this.#fetch(method, path, body);
    return answer.status === 204 ? null : answer.json();
  }

  /** @param {string} method @param {string} path @param {unknown} [body] */
  async #fetch(method, path, body) {
    /** @type {Record<string, string>} */
    const headers = {};
    if (this.key) headers["X-API-Key"] = this.key;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(this.base + path, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new ApiError(0, `Nothing answers at ${this.base}.`);
    }
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    throw new ApiError(answer.status, problem.detail ?? `The service answered ${answer.status}.`, problem.errors ?? []);
  }
}
