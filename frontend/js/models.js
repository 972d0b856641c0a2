/** The model that a node stands for. */

import {wiresOutOf} from "./graph/graph.js";
import {planOf} from "./graph/plan.js";
import {serviceNamed} from "./services.js";

/** @type {Fn.modelOf} */
export function modelOf(state, node) {
	const service = serviceNamed(state, node?.values.service);
	const {backend, model} = node?.values ?? {};
	const wanted = model ?? (backend ? service?.backends.find(({id}) => id === backend) : service?.info)?.default_model;
	return service?.models.find(({id}) => id === wanted) ?? null;
}

/** @type {Fn.priceOf} */
export function priceOf(model) {
	return model?.price ? `${model.price.split(" ")[0]} a picture` : "";
}

/** @type {Fn.modelOfSampler} */
export function modelOfSampler(state, sampler) {
	return modelOf(state, planOf(state.document.graph, sampler)?.model);
}

/** @type {Fn.modelAfter} */
export function modelAfter(state, node) {
	const [wire] = wiresOutOf(state.document.graph, node);
	return wire ? modelOfSampler(state, wire.to.node) : null;
}
