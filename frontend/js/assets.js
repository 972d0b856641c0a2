/**
 * Pictures that were dropped on the page: kept in the browser (IndexedDB), so that a reload loses
 * none, and named in the graph as `asset:<id>`. Without storage they live as long as the page.
 */

const NAME = "flux pictures";
const STORE = "files";
const PREFIX = "asset:";

/** @type {Map<string, Blob>} */
const memory = new Map();

/** @param {string} source */
export function isAsset(source) {
  return source.startsWith(PREFIX);
}

/** @param {Blob} blob @returns {Promise<string>} its name */
export async function keepAsset(blob) {
  const name = PREFIX + Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  memory.set(name, blob);
  try {
    await within("readwrite", (files) => files.put(blob, name));
  } catch {
    // Storage is off or full: the picture is there until the page is closed.
  }
  return name;
}

/** @param {string} name @returns {Promise<Blob | null>} */
export async function readAsset(name) {
  const blob = memory.get(name);
  if (blob) {
    return blob;
  }
  try {
    const found = await within("readonly", (files) => files.get(name));
    if (found instanceof Blob) {
      memory.set(name, found);
      return found;
    }
  } catch {
    // The same as not there.
  }
  return null;
}

/** As the service takes it. @param {Blob} blob @returns {Promise<string>} */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(String(reader.result)));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

/** @template T @param {IDBTransactionMode} mode @param {(files: IDBObjectStore) => IDBRequest<T>} act @returns {Promise<T>} */
async function within(mode, act) {
  const database = await opened();
  try {
    return await settled(act(database.transaction(STORE, mode).objectStore(STORE)));
  } finally {
    database.close();
  }
}

/** @returns {Promise<IDBDatabase>} */
function opened() {
  const request = indexedDB.open(NAME, 1);
  request.addEventListener("upgradeneeded", () => request.result.createObjectStore(STORE));
  return settled(request);
}

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.addEventListener("success", () => resolve(request.result));
    request.addEventListener("error", () => reject(request.error));
  });
}
