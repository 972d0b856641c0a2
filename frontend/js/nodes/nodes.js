/** How each type of node looks, and how its view begins and ends. */

import {whenRead} from "../lazy.js";
import {mountImage} from "./image.js";
import {mountModel} from "./model.js";
import {mountPrompt} from "./prompt.js";
import {mountSampler} from "./sampler.js";

/** Those of the first graph are there at once. @type {Readonly<Record<NodeKind, MountNode | (() => Promise<MountNode>)>>} */
const MOUNTS = {
	model: mountModel,
	prompt: mountPrompt,
	sampler: mountSampler,
	image: mountImage,
	lora: () => import("./lora.js").then(({mountLora}) => mountLora),
	negative: () => import("./words.js").then(({mountNegative}) => mountNegative),
	"image-input": () => import("./inputs.js").then(({mountImageInput}) => mountImageInput),
	mask: () => import("./mask.js").then(({mountMask}) => mountMask),
	references: () => import("./inputs.js").then(({mountReferences}) => mountReferences),
	compare: () => import("./compare.js").then(({mountCompare}) => mountCompare),
	note: () => import("./words.js").then(({mountNote}) => mountNote)
};

/** @type {Fn.mountNode} */
export function mountNode(app, node, body, place) {
	const {context, end, isOver} = contextOf(app, node, place);
	const mount = MOUNTS[node.kind];
	if (mount.length) /** @type {MountNode} */ (mount)(body, context);
	else whenRead(app.store, /** @type {() => Promise<MountNode>} */ (mount)(), read => isOver() || read(body, context));
	return end;
}

/** @type {Fn.whenMounted} */
export function whenMounted({nodes}) {
	const mounts = new Set(Object.values(nodes).map(({kind}) => MOUNTS[kind]));
	return Promise.allSettled([...mounts].map(mount => mount.length || /** @type {() => Promise<MountNode>} */ (mount)()));
}

/** @type {Fn.contextOf} */
export function contextOf(app, node, place) {
	const {id} = node;
	/** @type {(() => void)[]} */
	const ends = [];
	let last = node;
	let isOver = false;
	/** @type {NodeContext} */
	const context = {
		app,
		id,
		place,
		node: () => (last = app.editor.graph.nodes[id] ?? last),
		set: values => app.editor.setValues(id, values),
		watch: (select, react) => void ends.push(app.store.watch(select, react))
	};
	const end = () => {
		isOver = true;
		ends.splice(0).forEach(act => act());
	};
	return {context, end, isOver: () => isOver};
}
