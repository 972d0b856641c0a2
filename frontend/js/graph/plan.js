/** What a sampler draws with: the nodes that lead into it, by their part in the request. */

import {nodesOf, sourceOf, sourcesOf, wiresOutOf} from "./graph.js";

/** @type {Fn.planOf} */
export function planOf(graph, samplerId) {
	const sampler = graph.nodes[samplerId];
	if (sampler?.kind !== "sampler") return null;
	const [model = null, prompt = null, negative = null, image = null, mask = null, references = null] = [
		"model",
		"prompt",
		"negative",
		"image",
		"mask",
		"references"
	].map(socket => sourceOf(graph, samplerId, socket));
	return {sampler, model, loras: model ? sourcesOf(graph, model.id, "loras") : [], prompt, negative, image, mask, references};
}

/** @param {Graph} graph */
export function samplersOf(graph) {
	return nodesOf(graph).filter(({kind}) => kind === "sampler");
}

/** @type {Fn.mainSampler} */
export function mainSampler(graph, wanted = null) {
	const samplers = samplersOf(graph);
	return samplers.find(({id}) => id === wanted) ?? samplers.find(({id}) => wiresOutOf(graph, id).length) ?? samplers[0] ?? null;
}

/** @type {Fn.originOf} */
export function originOf(graph, nodeId, socket) {
	let source = sourceOf(graph, nodeId, socket);
	while (source?.kind === "image") source = sourceOf(graph, source.id, "image");
	return source;
}

/** @type {Fn.samplersBefore} */
export function samplersBefore(graph, samplerId) {
	const origin = originOf(graph, samplerId, "image");
	return origin?.kind === "sampler" ? [origin.id] : [];
}
