/** Pictures of the service in `<img>` elements and as downloads, with or without a key. */

/** @type {Fn.show} */
export async function show(image, path, connection) {
	if (!connection || image.dataset.path === path) return;
	image.dataset.path = path;
	if (!connection.sendsKey) return void (image.src = connection.url(path));
	image.removeAttribute("src");
	try {
		const url = URL.createObjectURL(await connection.ask(client => client.blob(path)));
		image.addEventListener("load", () => URL.revokeObjectURL(url), {once: true});
		if (image.dataset.path === path) image.src = url;
	} catch {
		delete image.dataset.path; // the alternative text stands for it; the next call tries again
	}
}

/** Shows nothing. @type {Fn.clear} */
export function clear(image) {
	delete image.dataset.path;
	image.removeAttribute("src");
}

/** @type {Fn.download} */
export async function download(event, connection) {
	const link = event.currentTarget;
	if (!connection.sendsKey || !(link instanceof HTMLAnchorElement)) return;
	event.preventDefault();
	const {href, download: filename} = link;
	save(await connection.ask(client => client.blob(new URL(href).pathname)), filename);
}

/** As a download. @type {Fn.save} */
export function save(blob, filename) {
	const url = URL.createObjectURL(blob);
	const link = document.createElement("a");
	[link.href, link.download] = [url, filename];
	link.click();
	setTimeout(() => URL.revokeObjectURL(url), 60_000); // the browser may still be reading it
}
