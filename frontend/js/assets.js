/**
 * Pictures that were dropped on the page: kept in the browser (IndexedDB), so that a reload loses
 * none, and named in the graph as `asset:<id>`. Without storage they live as long as the page.
 */

import {randomHex} from "./random.js";

const STORE = "files";
const PREFIX = "asset:";

/** @type {Map<string, Blob>} */
const memory = new Map();

/** @param {string} source */
export const isAsset = source => source.startsWith(PREFIX);

/** @type {Fn.keepAsset} */
export async function keepAsset(blob) {
	const picture = await asTaken(blob);
	const name = PREFIX + randomHex(12);
	memory.set(name, picture);
	// With storage off or full the picture is there until the page is closed.
	await within("readwrite", files => files.put(picture, name)).catch(() => {});
	return name;
}

/** In a format that a service takes. @param {Blob} blob */
async function asTaken(blob) {
	const bitmap = await createImageBitmap(blob).catch(() => {
		throw new Error("this browser cannot read the picture");
	});
	if (/png|jpeg|webp/.test(blob.type)) return blob;
	const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
	canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
	return canvas.convertToBlob();
}

/** @type {Fn.readAsset} */
export async function readAsset(name) {
	const found = memory.get(name) ?? (await within("readonly", files => files.get(name)).catch(() => null));
	if (!(found instanceof Blob)) return null;
	memory.set(name, found);
	return found;
}

/** As the service takes it. @type {Fn.dataUrl} */
export function dataUrl(blob) {
	return new Promise((resolve, reject) => {
		const reader = new FileReader();
		reader.onload = () => resolve(String(reader.result));
		reader.onerror = () => reject(reader.error);
		reader.readAsDataURL(blob);
	});
}

/** @type {Fn.within} */
async function within(mode, act) {
	const opening = indexedDB.open("flux pictures", 1);
	opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
	const database = await settled(opening);
	try {
		return await settled(act(database.transaction(STORE, mode).objectStore(STORE)));
	} finally {
		database.close();
	}
}

/** @type {Fn.settled} */
function settled(request) {
	return new Promise((resolve, reject) => {
		request.onsuccess = () => resolve(request.result);
		request.onerror = () => reject(request.error);
	});
}
