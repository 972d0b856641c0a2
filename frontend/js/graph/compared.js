/** How a picture is compared with another one of the same sampler on the other service. */

import {FIRST_SERVICE, SERVICE_NAMES} from "../config.js";
import {nodesOf, sourceOf, wiresInto, wiresOutOf} from "./graph.js";
import {around} from "./layout.js";
import {planOf} from "./plan.js";
import {Builder} from "./restore.js";

const GAP = 36;

/** @type {Fn.withTwin} */
export function withTwin(graph, samplerId, seed, boxOf) {
	const plan = planOf(graph, samplerId);
	if (!plan?.model) return null;
	const {model, sampler} = plan;
	const other = SERVICE_NAMES.find(name => name !== model.values.service) ?? FIRST_SERVICE;
	const fixed = sampler.values.seed_mode === "fixed" ? (sampler.values.seed ?? seed) : seed;
	const values = {...sampler.values, seed_mode: "fixed", seed: fixed, num_images: 1};
	const nodes = {...graph.nodes, [samplerId]: {...sampler, values}};
	const old = twinOf(graph, samplerId, other);
	if (old) return {graph: {...graph, nodes: {...nodes, [old.id]: {...old, values}}}, samplers: [samplerId, old.id]};
	const {x = 0, y = 0, width = 0, height = 0} = around(nodesOf(graph).map(({id}) => boxOf(id))) ?? {};
	const builder = new Builder({...graph, nodes});
	// Collapsed: they say nothing that the first ones do not, and the pictures are seen larger.
	const otherModel = builder.node("model", model.x, y + height + GAP, {...model.values, service: other}, true);
	const twin = builder.node("sampler", sampler.x, y + height + GAP, values, true);
	const compare = builder.node("compare", x + width + 2 * GAP, sampler.y);
	builder.wire(`${otherModel}.model`, `${twin}.model`);
	for (const {from} of wiresInto(graph, model.id, "loras")) builder.wire(`${from.node}.${from.socket}`, `${otherModel}.loras`);
	for (const {from, to} of wiresInto(graph, samplerId).filter(({to}) => to.socket !== "model")) {
		builder.wire(`${from.node}.${from.socket}`, `${twin}.${to.socket}`);
	}
	const [a, b] = other === FIRST_SERVICE ? [samplerId, twin] : [twin, samplerId];
	builder.wire(`${a}.image`, `${compare}.a`).wire(`${b}.image`, `${compare}.b`);
	return {graph: builder.graph, samplers: [samplerId, twin]};
}

/** @type {Fn.twinOf} */
function twinOf(graph, samplerId, service) {
	for (const {to} of wiresOutOf(graph, samplerId)) {
		const twin = graph.nodes[to.node]?.kind === "compare" ? sourceOf(graph, to.node, to.socket === "a" ? "b" : "a") : null;
		if (twin && planOf(graph, twin.id)?.model?.values.service === service) return twin;
	}
	return null;
}
