/** Where the service is. */

const BF16_PORT = "8001";
const LOOPBACK_NAMES = ["127.0.0.1", "localhost", "[::1]"];

/**
 * The service that serves the page, or the one named by `?bf16=http://127.0.0.1:PORT`, or the one
 * on the usual port of the page's machine. An address elsewhere is refused: prompts and keys go
 * to this machine only.
 *
 * @param {Location | URL} page
 * @returns {{url: string, refused: string}} `refused` is the address that was not taken, or "".
 */
export function serviceAddress(page) {
  if (/^\/(?:ui|docs)(?:\/|$)/.test(page.pathname)) {
    return { url: page.origin, refused: "" };
  }
  const usual = `${page.protocol}//${page.hostname}:${BF16_PORT}`;
  const wanted = new URLSearchParams(page.search).get("bf16");
  if (wanted === null) {
    return { url: usual, refused: "" };
  }
  const url = ownMachine(wanted, page.hostname);
  return url === null ? { url: usual, refused: wanted } : { url, refused: "" };
}

/**
 * @param {string} text
 * @param {string} pageHostname
 */
function ownMachine(text, pageHostname) {
  if (!URL.canParse(text)) {
    return null;
  }
  const url = new URL(text);
  const isOurs = [...LOOPBACK_NAMES, pageHostname].includes(url.hostname);
  return url.protocol === "http:" && isOurs && !url.username && !url.password ? url.origin : null;
}
