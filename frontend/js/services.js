/** Both services, as far as this page has them. */

import {FIRST_SERVICE, SERVICE_NAMES} from "./config.js";
import {isReachable} from "./connection.js";

/** @type {Fn.servicesOf} */
export function servicesOf({services}) {
	return SERVICE_NAMES.flatMap(name => services[name] ?? []);
}

/** @type {Fn.serviceNamed} */
export function serviceNamed({services}, name) {
	return SERVICE_NAMES.flatMap(known => (known === name ? (services[known] ?? []) : []))[0] ?? null;
}

/** @type {Fn.firstService} */
export function firstService(state) {
	const services = servicesOf(state);
	const up = services.filter(isReachable);
	const isFirst = (/** @type {ServiceState} */ {name}) => name === FIRST_SERVICE;
	return (up.find(isFirst) ?? up[0] ?? services.find(isFirst) ?? services[0])?.name ?? FIRST_SERVICE;
}

/** @type {Fn.whenUp} */
export function whenUp(store, connections, act) {
	for (const connection of Object.values(connections)) {
		store.watch(({services}) => [isReachable(services[connection.name])], isUp => isUp && act(connection));
	}
}

/** @type {Fn.connectionTo} */
export function connectionTo(connections, name) {
	const connection = connections[name];
	if (!connection) throw new Error(`This page knows no ${name.toUpperCase()} service. Choose the other one in the Model node.`);
	return connection;
}
