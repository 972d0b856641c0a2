/** What must differ each time. `crypto.randomUUID` is missing on pages served without TLS by name. */

/** @param {number} bytes */
export function randomHex(bytes) {
	return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), byte => byte.toString(16).padStart(2, "0")).join("");
}

/** A seed to hold on to. */
export function newSeed() {
	return Number(crypto.getRandomValues(new Uint32Array(1))[0]);
}
