/** Where the services are. */

/** @type {Readonly<Record<ServiceName, string>>} */
const USUAL_PORTS = {fp4: "8000", bf16: "8001"};
export const SERVICE_NAMES = /** @type {ServiceName[]} */ (Object.keys(USUAL_PORTS));
/** The one that others are compared with, and that a graph begins with. @type {ServiceName} */
export const FIRST_SERVICE = "bf16";
const LOOPBACK_NAMES = ["127.0.0.1", "localhost", "[::1]"];

/** The service that serves this page, if one does: there `/ui` and `/docs` are. @param {Location | URL} page */
export function ownService(page) {
	return /^\/(?:ui|docs)(?:\/|$)/.test(page.pathname) ? page.origin : null;
}

/** @type {Fn.serviceAddresses} */
export function serviceAddresses(page, own = null) {
	const origin = ownService(page);
	// Beside a service that is not on its usual port, the other one is not known.
	const isUsual = origin === null || Object.values(USUAL_PORTS).includes(page.port);
	/** @type {Partial<Record<ServiceName, string>>} */
	const addresses = {};
	let refused = "";
	for (const name of SERVICE_NAMES) {
		const wanted = new URLSearchParams(page.search).get(name);
		const usual = isUsual ? `${page.protocol}//${page.hostname}:${USUAL_PORTS[name]}` : "";
		const given = wanted ? ownMachine(wanted, page.hostname) : null;
		const isOwn = origin !== null && name === own;
		if (wanted && !given && !isOwn) refused ||= wanted;
		const address = isOwn ? origin : wanted === "" ? "" : (given ?? usual);
		if (address) addresses[name] = address;
	}
	return {addresses, refused};
}

/** @type {Fn.ownMachine} */
function ownMachine(text, pageHostname) {
	if (!URL.canParse(text)) return null;
	const {hostname, protocol, username, password, origin} = new URL(text);
	const isOurs = [...LOOPBACK_NAMES, pageHostname].includes(hostname);
	return protocol === "http:" && isOurs && !username && !password ? origin : null;
}
