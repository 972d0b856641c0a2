/** The texts in a PNG file, read without decoding a pixel. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_TEXT = 2 ** 22;

/** @param {ArrayBuffer} data */
export function isPng(data) {
  const head = new Uint8Array(data, 0, Math.min(8, data.byteLength));
  return SIGNATURE.every((byte, index) => head[index] === byte);
}

/**
 * Texts by keyword, of tEXt, zTXt and iTXt. Throws for a file that is no PNG or is cut off.
 * @param {ArrayBuffer} data
 * @returns {Promise<Record<string, string>>}
 */
export async function pngTexts(data) {
  if (!isPng(data)) {
    throw new Error("this is no PNG file");
  }
  const view = new DataView(data);
  /** @type {Record<string, string>} */
  const texts = {};
  for (let place = SIGNATURE.length; ; ) {
    if (place + 12 > data.byteLength) {
      throw new Error("the PNG file is cut off");
    }
    const length = view.getUint32(place);
    const kind = latin1(new Uint8Array(data, place + 4, 4));
    if (place + 12 + length > data.byteLength) {
      throw new Error("the PNG file is cut off");
    }
    if (kind === "IEND") {
      return texts;
    }
    if (kind === "tEXt" || kind === "zTXt" || kind === "iTXt") {
      const [key, text] = await textOf(kind, new Uint8Array(data, place + 8, length));
      texts[key] = text;
    }
    place += 12 + length;
  }
}

/** @param {string} kind @param {Uint8Array} body @returns {Promise<[string, string]>} */
async function textOf(kind, body) {
  const [key, rest] = split(body);
  if (kind === "tEXt") {
    return [latin1(key), latin1(rest)];
  }
  if (kind === "zTXt") {
    return [latin1(key), latin1(await inflated(rest.subarray(1)))];
  }
  const isCompressed = rest[0] === 1;
  const [, afterLanguage] = split(rest.subarray(2));
  const [, value] = split(afterLanguage);
  return [latin1(key), new TextDecoder().decode(isCompressed ? await inflated(value) : value)];
}

/** At the first zero byte. @param {Uint8Array} bytes @returns {[Uint8Array, Uint8Array]} */
function split(bytes) {
  const zero = bytes.indexOf(0);
  return zero < 0 ? [bytes, new Uint8Array()] : [bytes.subarray(0, zero), bytes.subarray(zero + 1)];
}

/** @param {Uint8Array} bytes */
async function inflated(bytes) {
  const stream = new Blob([/** @type {Uint8Array<ArrayBuffer>} */ (bytes)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  const chunks = [];
  let size = 0;
  for (let { done, value } = await reader.read(); !done && value; { done, value } = await reader.read()) {
    size += value.length;
    if (size > MOST_TEXT) {
      await reader.cancel();
      throw new Error("a text in the PNG file is too large");
    }
    chunks.push(value);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** @param {Uint8Array} bytes */
function latin1(bytes) {
  return new TextDecoder("latin1").decode(bytes);
}
