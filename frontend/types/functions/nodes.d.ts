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
	/** A number to type, or to drag by its label. Empty: the model's default, shown as a placeholder. */
	type numberField = (context: NodeContext, options: FieldOptions & {fallback?: (state: State) => number | null}) => HTMLDivElement;
	/** Calls for each whole number that is typed. */
	type onNumber = (input: HTMLInputElement, act: (value: number) => void) => void;
	/** A number between two ends, as a slider with a number beside it. */
	type rangeField = (context: NodeContext, options: FieldOptions) => HTMLDivElement;
	type textField = (context: NodeContext, options: FieldOptions & {rows?: number, placeholder?: string}) => { box: HTMLDivElement; area: HTMLTextAreaElement; };
	type watchValue = (context: NodeContext, name: string, react: (value: Value) => void) => void;

	/* js/nodes/image.js */
	type imageFactsOf = (shown: Shown, image: JobImage) => string;
	type imageOf = (shown: Shown | undefined) => JobImage | undefined;
	type setRatio = (element: HTMLElement, /** px */ size: Extent) => void;

	/* js/nodes/lora.js */
	/** Of the services that the wire leads to; of all where there is none. */
	type lorasFor = (state: State) => readonly Lora[];

	/* js/nodes/mask.js */
	type paint = (event: PointerEvent) => void;

	/* js/nodes/model.js */
	/** Reasons, each once, with the models that it holds for. */
	type byReason = (models: readonly Model[]) => [string, string][];
	type wordsOf = (service: ServiceState | null, model: Model | null) => string;

	/* js/nodes/nodes.js */
	/** What a view of a node is given, and how it is ended. */
	type contextOf = (app: App, node: GraphNode, place: NodeContext["place"]) => { context: NodeContext; end: () => void; isOver: () => boolean; };
	/** When all that is in the nodes was read, or could not be. */
	type whenMounted = (graph: Graph) => Promise<unknown>;
	/** Fills the body of a node. The view follows the state until it is ended. */
	type mountNode = (app: App, node: GraphNode, body: HTMLElement, place: NodeContext["place"]) => () => void; // ends it

	/* js/nodes/pictures.js */
	/** Shows a picture of the page, or one of a service by its id; "" shows none. */
	type showSource = (image: HTMLImageElement, app: App, source: string) => Promise<void>;
	/** Names of the pictures that can be read; of another one it is said. */
	type keptOf = (app: App, files: readonly File[]) => Promise<string[]>;
	type segments = (
		context: NodeContext,
		options: FieldOptions & {choices: readonly {value: string; words: string}[]; onChoose?: (value: string) => void}
	) => HTMLElement;
	type specOf = <K extends ValueSpec["kind"]>(context: NodeContext, name: string, kind: K) => Extract<ValueSpec, {kind: K}>;
	/** Pictures that are dropped on an element are its own. */
	type takeDrops = (element: HTMLElement, take: (files: readonly File[]) => void) => void;
	/** Says when the model that a node leads to takes no such pictures, and which do. */
	type whyNotUsed = (context: NodeContext, /** "image", "mask" or "references" */ way: string) => HTMLParagraphElement;

	/* js/nodes/sampler.js */
	type numberOf = (name: "width" | "height" | "num_inference_steps" | "guidance_scale", label: string) => HTMLDivElement;
}
