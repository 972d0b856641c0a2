/** What functions of js/nodes/ take and return, where that is too long to stand beside them. */

/** js/nodes/fields.js */
declare namespace FieldsNodeFn {
	type numberField = (context: NodeContext, options: FieldOptions & {fallback?: (state: State) => number | null}) => HTMLDivElement;
	type field = (context: NodeContext, options: FieldOptions & {control: HTMLElement, wide?: boolean, scrub?: (steps: number) => void}) => HTMLDivElement;
}

/** js/nodes/model.js */
declare namespace ModelNodeFn {
	type byReason = (models: readonly Model[]) => [string, string][];
	type wordsOf = (service: ServiceState | null, model: Model | null) => string;
}

/** js/nodes/sampler.js */
declare namespace SamplerNodeFn {
	type numberOf = (name: "width" | "height" | "num_inference_steps" | "guidance_scale", label: string) => HTMLDivElement;
}

/** js/nodes/pictures.js */
declare namespace PicturesNodeFn {
	type showSource = (image: HTMLImageElement, app: App, source: string) => Promise<void>;
	type takeDrops = (element: HTMLElement, take: (files: readonly File[]) => void) => void;
	type whyNotUsed = (context: NodeContext, /** "image", "mask" or "references" */ way: string) => HTMLParagraphElement;
}

/** js/nodes/compare.js */
declare namespace CompareNodeFn {
	type draw = (first: Side, second: Side, key: string) => Promise<void>;
	type sideOf = (app: App, state: State, nodeId: string, socket: string) => Side | null;
	type put = (canvas: HTMLCanvasElement, pixels: Pixels) => void;
}

/** js/nodes/nodes.js */
declare namespace NodesNodeFn {
	type mountNode = (app: App, node: GraphNode, body: HTMLElement, place: NodeContext["place"]) => () => void; // ends it
}
