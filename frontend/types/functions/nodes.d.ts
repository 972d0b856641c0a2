/** What functions of js/nodes/ take and return, where that is too long to stand beside them. */

declare namespace Fn {
	/* js/nodes/compare.js */
	type compareDraw = (first: Side, second: Side, key: string) => Promise<void>;
	type comparePut = (canvas: HTMLCanvasElement, pixels: Pixels) => void;
	type sideOf = (app: App, state: State, nodeId: string, socket: string) => Side | null;

	/* js/nodes/fields.js */
	type field = (context: NodeContext, options: FieldOptions & {control: HTMLElement, wide?: boolean, scrub?: (steps: number) => void}) => HTMLDivElement;
	type fieldsWrite = (control: HTMLInputElement | HTMLTextAreaElement, text: string) => void;
	type makeScrubbable = (handle: HTMLElement, scrub: (steps: number) => void, context: NodeContext) => void;
	type numberField = (context: NodeContext, options: FieldOptions & {fallback?: (state: State) => number | null}) => HTMLDivElement;
	type onNumber = (input: HTMLInputElement, act: (value: number) => void) => void;
	type rangeField = (context: NodeContext, options: FieldOptions) => HTMLDivElement;
	type textField = (context: NodeContext, options: FieldOptions & {rows?: number, placeholder?: string}) => { box: HTMLDivElement; area: HTMLTextAreaElement; };
	type watchValue = (context: NodeContext, name: string, react: (value: Value) => void) => void;

	/* js/nodes/image.js */
	type imageFactsOf = (shown: Shown, image: JobImage) => string;
	type imageOf = (shown: Shown | undefined) => JobImage | undefined;
	type setRatio = (element: HTMLElement, /** px */ size: Extent) => void;

	/* js/nodes/lora.js */
	type lorasFor = (state: State) => readonly Lora[];

	/* js/nodes/mask.js */
	type paint = (event: PointerEvent) => void;

	/* js/nodes/model.js */
	type byReason = (models: readonly Model[]) => [string, string][];
	type wordsOf = (service: ServiceState | null, model: Model | null) => string;

	/* js/nodes/nodes.js */
	type contextOf = (app: App, node: GraphNode, place: NodeContext["place"]) => { context: NodeContext; end: () => void; isOver: () => boolean; };
	type mountNode = (app: App, node: GraphNode, body: HTMLElement, place: NodeContext["place"]) => () => void; // ends it

	/* js/nodes/pictures.js */
	type showSource = (image: HTMLImageElement, app: App, source: string) => Promise<void>;
	type takeDrops = (element: HTMLElement, take: (files: readonly File[]) => void) => void;
	type whyNotUsed = (context: NodeContext, /** "image", "mask" or "references" */ way: string) => HTMLParagraphElement;

	/* js/nodes/sampler.js */
	type numberOf = (name: "width" | "height" | "num_inference_steps" | "guidance_scale", label: string) => HTMLDivElement;
}
