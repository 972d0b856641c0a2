/** Where the service is. */

const DEFAULT_PORT = 8001;

/**
 * The address of the BF16 service: the page's own when the service serves it at /ui, else what
 * `?bf16=` names (on this machine or the page's host), else the page's host on port 8001.
 * @param {Location} place
 * @returns {string} origin without a slash at its end
 */
export function serviceUrl(place) {
  if (place.pathname === "/ui" || place.pathname.startsWith("/ui/")) return place.origin;
  const wanted = new URLSearchParams(place.search).get("bf16");
  if (wanted && URL.canParse(wanted)) {
    const url = new URL(wanted);
    const near = ["127.0.0.1", "localhost", "[::1]", place.hostname];
    if (["http:", "https:"].includes(url.protocol) && near.includes(url.hostname)) return url.origin;
  }
  return `http://${place.hostname || "127.0.0.1"}:${DEFAULT_PORT}`;
}
