/** What a picture says about itself: texts in a PNG, the EXIF user comment of a JPEG or WebP. No pixel is decoded. */

const MOST_TEXT = 2 ** 22;
const TOO_LARGE = "a text in the PNG file is too large";
const MARK = "\nflux_api: ";
const [EXIF_IFD, USER_COMMENT] = [0x8769, 0x9286];

/** @type {Fn.pictureTexts} */
export async function pictureTexts(data) {
	const head = latin1(new Uint8Array(data, 0, Math.min(12, data.byteLength)));
	if (head.startsWith("\x89PNG\r\n\x1a\n")) return pngTexts(new DataView(data));
	if (head.startsWith("\xff\xd8")) return exifTexts(jpegExif(new DataView(data)));
	if (/^RIFF[^]{4}WEBP/.test(head)) return exifTexts(webpExif(new DataView(data)));
	throw new Error("it is no PNG, JPEG or WebP file");
}

/** tEXt, zTXt and iTXt. @param {Bytes} view */
async function pngTexts(view) {
	/** @type {Record<string, string>} */
	const texts = {};
	for (let at = 8; ;) {
		const length = at + 12 > view.byteLength ? Infinity : view.getUint32(at);
		if (at + 12 + length > view.byteLength) throw new Error("the PNG file is cut off");
		const kind = latin1(bytesOf(view, at + 4, 4));
		if (kind === "IEND") return texts;
		if (["tEXt", "zTXt", "iTXt"].includes(kind)) {
			if (length > MOST_TEXT) throw new Error(TOO_LARGE);
			const [key, rest] = split(bytesOf(view, at + 8, length));
			if (kind === "tEXt") texts[latin1(key)] = latin1(rest);
			else if (kind === "zTXt") texts[latin1(key)] = latin1(await inflated(rest.subarray(1)));
			else {
				const value = split(split(rest.subarray(2))[1])[1];
				texts[latin1(key)] = new TextDecoder().decode(rest[0] === 1 ? await inflated(value) : value);
			}
		}
		at += 12 + length;
	}
}

/** The TIFF structure in a JPEG's segment. @param {Bytes} view */
function jpegExif(view) {
	for (let at = 2; at + 4 <= view.byteLength && view.getUint8(at) === 0xff; at += 2 + view.getUint16(at + 2)) {
		const body = view.getUint8(at + 1) === 0xe1 ? bytesOf(view, at + 4, view.getUint16(at + 2) - 2) : null;
		if (body && latin1(body.subarray(0, 6)) === "Exif\0\0") return body.subarray(6);
		if (view.getUint8(at + 1) === 0xda) break; // the pixels begin
	}
	return null;
}

/** The same in a WebP's chunk. @param {Bytes} view */
function webpExif(view) {
	for (let at = 12; at + 8 <= view.byteLength;) {
		const length = view.getUint32(at + 4, true);
		if (latin1(bytesOf(view, at, 4)) === "EXIF") {
			const body = bytesOf(view, at + 8, length);
			return latin1(body.subarray(0, 6)) === "Exif\0\0" ? body.subarray(6) : body;
		}
		at += 8 + length + (length % 2);
	}
	return null;
}

/** @type {Fn.exifTexts} */
function exifTexts(tiff) {
	const comment = tiff && userComment(new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength));
	if (!comment) return {};
	const at = comment.lastIndexOf(MARK);
	return at < 0 ? {parameters: comment} : {parameters: comment.slice(0, at), flux_api: comment.slice(at + MARK.length)};
}

/** @param {Bytes} view */
function userComment(view) {
	if (view.byteLength < 8) return null;
	const isLittle = view.getUint16(0) === 0x4949;
	const body = entry(view, isLittle, entry(view, isLittle, view.getUint32(4, isLittle), EXIF_IFD)?.value ?? 0, USER_COMMENT);
	if (!body) return null;
	const bytes = bytesOf(view, body.value, body.count);
	const code = latin1(bytes.subarray(0, 7));
	const words = bytes.subarray(8);
	if (code !== "UNICODE") return latin1(words);
	// Big-endian is usual whatever the rest is: Latin letters have their zero first.
	return new TextDecoder(words[0] !== 0 && words[1] === 0 ? "utf-16le" : "utf-16be").decode(words);
}

/** An entry of a directory. @type {Fn.entry} */
function entry(view, isLittle, at, tag) {
	const count = at > 0 && at + 2 <= view.byteLength ? view.getUint16(at, isLittle) : 0;
	for (let place = at + 2; place < at + 2 + 12 * count && place + 12 <= view.byteLength; place += 12) {
		if (view.getUint16(place, isLittle) === tag) return {count: view.getUint32(place + 4, isLittle), value: view.getUint32(place + 8, isLittle)};
	}
	return null;
}

/** As far as the file goes. @type {Fn.bytesOf} */
function bytesOf(view, at, length) {
	const start = Math.min(at, view.byteLength);
	return new Uint8Array(view.buffer, view.byteOffset + start, Math.max(0, Math.min(length, view.byteLength - start)));
}

/** At the first zero byte. @type {Fn.split} */
function split(bytes) {
	const zero = bytes.indexOf(0);
	return zero < 0 ? [bytes, new Uint8Array()] : [bytes.subarray(0, zero), bytes.subarray(zero + 1)];
}

/** @type {Fn.inflated} */
async function inflated(bytes) {
	const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
	const chunks = [];
	let size = 0;
	for (let {done, value} = await reader.read(); !done && value; {done, value} = await reader.read()) {
		size += value.length;
		chunks.push(value);
		if (size > MOST_TEXT) {
			await reader.cancel();
			throw new Error(TOO_LARGE);
		}
	}
	return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** Byte by byte: `TextDecoder` takes Windows' letters for it. @param {Uint8Array} bytes */
const latin1 = bytes => Array.from(bytes, byte => String.fromCharCode(byte)).join("");
