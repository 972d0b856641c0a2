/** Pictures of the service in `<img>` elements and as downloads, with or without a key. */

/** @import { Connection } from "./connection.js" */

/**
 * Shows a picture of the service. With a key it is fetched with the header and shown as a blob.
 * The newest call for an element wins.
 *
 * @param {HTMLImageElement} image
 * @param {string} path
 * @param {Connection} connection
 */
export async function show(image, path, connection) {
  if (image.dataset.path === path) {
    return;
  }
  image.dataset.path = path;
  if (!connection.sendsKey) {
    image.src = connection.url(path);
    return;
  }
  image.removeAttribute("src");
  try {
    const url = URL.createObjectURL(await connection.ask((client) => client.blob(path)));
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    if (image.dataset.path === path) {
      image.src = url;
    }
  } catch {
    delete image.dataset.path; // the alternative text stands for it; the next call tries again
  }
}

/** Shows nothing. @param {HTMLImageElement} image */
export function clear(image) {
  delete image.dataset.path;
  image.removeAttribute("src");
}

/**
 * Makes a link download a file of the service.
 *
 * @param {HTMLAnchorElement} link
 * @param {{download_url: string, filename: string}} file
 * @param {Connection} connection
 */
export function offer(link, { download_url, filename }, connection) {
  link.href = connection.url(download_url);
  link.download = filename;
}

/** For a click on such a link: with a key the browser cannot fetch it alone. @param {Event} event @param {Connection} connection */
export async function download(event, connection) {
  const link = event.currentTarget;
  if (!connection.sendsKey || !(link instanceof HTMLAnchorElement)) {
    return;
  }
  event.preventDefault();
  const path = new URL(link.href).pathname;
  const url = URL.createObjectURL(await connection.ask((client) => client.blob(path)));
  const saving = document.createElement("a");
  saving.href = url;
  saving.download = link.download;
  saving.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
}
