/** What must differ each time. `crypto.randomUUID` is missing on pages served without TLS by name. */

/** A new idempotency key. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** A seed to hold on to. */
export function newSeed() {
  return Number(crypto.getRandomValues(new Uint32Array(1))[0]);
}
