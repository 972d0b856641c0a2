/** Server-Sent Events out of a response: with `fetch`, because `EventSource` sends no key. */

/** @type {Fn.readEvents} */
export async function readEvents(body, onEvent) {
	const reader = body.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
	let rest = "";
	for (let {done, value} = await reader.read(); !done; {done, value} = await reader.read()) {
		const blocks = (rest + value).split("\n\n");
		rest = blocks.pop() ?? "";
		blocks.forEach(block => readBlock(block, onEvent));
	}
}

/** @type {Fn.readBlock} */
function readBlock(block, onEvent) {
	let name = "message";
	const data = [];
	for (const line of block.split("\n")) {
		const [, field, text = ""] = /^([^:]+)(?:: ?(.*?))?\r?$/.exec(line) ?? [];
		if (field === "event") name = text;
		else if (field === "data") data.push(text);
	}
	if (data.length) onEvent({name, data: JSON.parse(data.join("\n"))});
}
