/** Server-Sent Events out of a response: with `fetch`, because `EventSource` sends no key. */

/** @typedef {{name: string, data: any}} StreamEvent */

/**
 * Returns when the stream ends.
 * @param {ReadableStream<Uint8Array>} body
 * @param {(event: StreamEvent) => void} onEvent
 */
export async function readEvents(body, onEvent) {
  const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = eventOf(block);
      if (event) {
        onEvent(event);
      }
    }
  }
}

/** @param {string} block @returns {StreamEvent | null} */
function eventOf(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [field, text] = line.startsWith(":") ? ["", ""] : split(line);
    if (field === "event") {
      name = text;
    } else if (field === "data") {
      data.push(text);
    }
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

/** @param {string} line @returns {[string, string]} */
function split(line) {
  const colon = line.indexOf(":");
  return colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "").replace(/\r$/, "")];
}
