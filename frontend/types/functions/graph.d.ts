/** What functions of js/graph/ take and return, where that is too long to stand beside them. */

declare namespace Fn {
	/* js/graph/comfy.js */
	type conditioning = (reader: Reader, node: ComfyNode | null) => Wanted;
	type customRequest = (reader: Reader, sampler: ComfyNode) => Wanted;
	type isLink = (value: unknown) => value is {from: string};
	type latent = (reader: Reader, node: ComfyNode | null) => Wanted;
	/** Loaders of LoRAs up to the loader of the model. */
	type modelChain = (reader: Reader, node: ComfyNode | null) => Wanted;
	type nodesFrom = (data: unknown) => Map<string, ComfyNode>;
	type samplerRequest = (reader: Reader, sampler: ComfyNode) => Wanted;
	type savedNodes = (nodes: readonly unknown[], links: readonly unknown[]) => ComfyNode[];
	type sentNodes = (file: Record<string, unknown>) => ComfyNode[];
	/** What is wired to an input, through reroutes. */
	type source = (node: ComfyNode | null, input: string) => ComfyNode | null;
	/** A value, typed in or of a primitive node that is wired to it. */
	type value = (node: ComfyNode | null, input: string) => unknown;

	/* js/graph/commands.js */
	type align = (graph: Graph, ids: readonly string[], how: "left" | "top" | "row" | "column", boxOf: (id: string) => Box) => Command | null;
	type applied = (graph: Graph, changes: readonly Change[], side: "before" | "after") => Graph;
	type changeNodes = (graph: Graph, ids: readonly string[], label: string, change: (node: GraphNode) => GraphNode, series?: string) => Command | null;
	type changeOf<P extends "node" | "wire", T> = (before: T | null, after: T | null) => {part: P; id: string; before: T | null; after: T | null};
	type collapse = (graph: Graph, ids: readonly string[], collapsed: boolean) => Command | null;
	type commandOf = (label: string, changes: readonly Change[], series?: string) => Command;
	/** A wire; it takes the place of the one that an input for one has. */
	type connect = (graph: Graph, from: End, to: End) => Command | null;
	/** Makers of the wires of a picture to draw from: to the sampler, and to masks that lie on none. */
	type feeding = (graph: Graph, id: string, sampler: readonly string[]) => ((graph: Graph) => Command | null)[];
	type connecting = (/** "n1.model" */ from: string, to: string) => (graph: Graph) => Command | null;
	/** Nodes and the wires between them, to copy. */
	type copy = (graph: Graph, ids: readonly string[]) => Fragment;
	type disconnect = (graph: Graph, ids: readonly string[]) => Command | null;
	/** A copy beside the original, with the wires that lead into it from elsewhere. */
	type duplicate = (graph: Graph, ids: readonly string[], by: Point) => { command: Command; ids: string[]; } | null;
	type execute = (graph: Graph, command: Command) => Graph;
	type isSame = (a: Value | undefined, b: Value | undefined) => boolean;
	type isSameNode = (a: GraphNode, b: GraphNode) => boolean;
	/** Two commands, one after the other, as one. */
	type joined = (first: Command, second: Command) => Command;
	type moveNodes = (graph: Graph, places: Readonly<Record<string, Point>>, series?: string) => Command | null;
	/** Puts a fragment in, under new ids and moved. */
	type paste = (graph: Graph, fragment: Fragment, by: Point, label?: string) => {command: Command; ids: string[]} | null;
	/** Nodes and every wire at them. */
	type removeNodes = (graph: Graph, ids: readonly string[]) => Command | null;
	/** Another graph in place of this one. */
	type replaceAll = (graph: Graph, other: Graph, label: string) => Command;
	type revert = (graph: Graph, command: Command) => Graph;
	type setValues = (graph: Graph, id: string, values: Readonly<Record<string, Value>>, series?: string) => Command | null;
	/** Several commands, each made for the graph that the ones before leave, as one. */
	type together = (label: string, graph: Graph, makers: readonly ((graph: Graph) => Command | null)[]) => Command | null;

	/* js/graph/compared.js */
	type twinOf = (graph: Graph, samplerId: string, service: string) => GraphNode | null;
	/** A graph in which a sampler has a twin on the other service, with the same seed, and both lead into a Compare node; null when it has no model. A twin that is there already is used again. */
	type withTwin = (graph: Graph, samplerId: string, /** for a sampler without a fixed one */ seed: number, /** where the nodes are: what is new goes beside them */ boxOf: (id: string) => Box) => { graph: { nodes: { [x: string]: GraphNode | { values: { seed_mode: string; seed: string | number | boolean | readonly string[]; num_images: number; }; id: string; kind: NodeKind; x: number; y: number; collapsed: boolean; } | { values: { seed_mode: string; seed: string | number | boolean | readonly string[]; num_images: number; }; id: string; kind: NodeKind; x: number; y: number; collapsed: boolean; }; }; wires: Readonly<Record<string, Wire>>; }; samplers: string[]; } | null;

	/* js/graph/difference.js */
	/** Gaussian means where the whole window lies inside. */
	type blur = (values: Float64Array, width: number, height: number) => Float64Array<ArrayBufferLike>;
	/** Where they differ: black where they agree, brighter the more they do not (`gain` times). */
	type differenceMap = (a: Pixels, b: Pixels, gain?: number) => { data: Uint8ClampedArray<ArrayBuffer>; width: number; height: number; };
	type meanOfProducts = (first: Float64Array, second: Float64Array) => Float64Array<ArrayBufferLike>;
	/** Decibels; Infinity for equal pictures. */
	type psnr = (a: Pixels, b: Pixels) => number;
	/** -1 to 1; 1 for equal pictures. */
	type ssim = (a: Pixels, b: Pixels) => number;
	/** Sums along rows (`step` 1) or columns (`step` the width). */
	type weighted = (
		values: Float64Array,
		/** of the result */ width: number,
		height: number,
		/** of a row */ stride: number,
		step: number
	) => Float64Array;

	/* js/graph/graph.js */
	type byAge = (a: {id: string}, b: {id: string}) => number;
	type endOf = (/** "n1.model" */ text: string) => End;
	/** What is wrong with a graph, one sentence each: for tests and for files from elsewhere. */
	type faultsOf = (graph: Graph) => string[];
	/** The next free ids: `n7` for nodes, `w7` for wires. */
	type freeIds = (graph: Graph, part: "nodes" | "wires") => () => string;
	/** Whether wires lead from one node to another. */
	type leadsTo = (graph: Graph, start: string, end: string) => boolean;
	type newNode = (id: string, kind: NodeKind, place: Point, values?: Record<string, Value>) => GraphNode;
	type sourceOf = (graph: Graph, node: string, socket: string) => GraphNode | null;
	/** What is wired to an input, oldest first. */
	type sourcesOf = (graph: Graph, node: string, socket: string) => GraphNode[];
	/** The type of what flows out of a socket, or into it. */
	type typeAt = (graph: Graph, end: End, side: Way) => SocketType | null;
	/** Why a wire cannot go from an output to an input; "" when it can. */
	type whyNoWire = (graph: Graph, from: End, to: End) => string;
	type wiresAt = (graph: Graph, end: "to" | "from", node: string, socket?: string) => Wire[];
	/** Wires into a node, or into one socket of it, oldest first. */
	type wiresInto = (graph: Graph, node: string, socket?: string) => Wire[];
	type wiresOutOf = (graph: Graph, node: string, socket?: string) => Wire[];

	/* js/graph/history.js */
	type newDocument = (graph: Graph) => Doc;
	type perform = (document: Doc, command: Command | null, /** whether it may be joined with the last one, when both are of one series */ goesOn?: boolean) => Doc;
	type step = (document: Doc) => Doc;

	/* js/graph/infotext.js */
	type fromInfotext = (text: string) => Wanted | null; // null when it is no such text

	/* js/graph/layout.js */
	/** The box around boxes, or null around none. */
	type around = (boxes: readonly Box[]) => Box | null;
	type arranged = (graph: Graph, sizeOf: (id: string) => {width: number, height: number}) => Record<string, Point>;

	/* js/graph/picture_texts.js */
	type bytesOf = (view: Bytes, at: number, length: number) => Uint8Array<ArrayBuffer>;
	type entry = (view: DataView, isLittle: boolean, at: number, tag: number) => { count: number; value: number; } | null;
	type exifTexts = (tiff: Uint8Array<ArrayBuffer> | null) => Record<string, string>;
	type inflated = (bytes: Uint8Array<ArrayBuffer>) => Promise<Uint8Array<ArrayBuffer>>;
	/** Texts by keyword; none in a picture that has none. Throws for a file that is no such picture or is cut off. */
	type pictureTexts = (data: ArrayBuffer) => Promise<Record<string, string>>;
	type split = (bytes: Uint8Array<ArrayBuffer>) => [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>];

	/* js/graph/plan.js */
	/** The sampler that the form shows: the one that is wanted, else the first one that draws into an image, else the first. */
	type mainSampler = (graph: Graph, wanted?: string | null) => GraphNode | null;
	/** The sampler whose picture arrives at an input, through Image nodes; or the Image input node that it comes from. */
	type originOf = (graph: Graph, nodeId: string, socket: string) => GraphNode | null;
	type planOf = (graph: Graph, samplerId: string) => Plan | null;
	/** Samplers that must run before this one, because it starts from their picture. */
	type samplersBefore = (graph: Graph, samplerId: string) => string[];

	/* js/graph/request.js */
	type fault = (node: string, field: string, message: string) => number;
	/** What a sampler asks for. Left to the model is what was left open; values are judged by the service. */
	type orderOf = (graph: Graph, samplerId: string) => Order | null;
	type partsOf = (graph: Graph, samplerId: string, fault: (node: string, field: string, message: string) => void) => Part[];
	type requestAdd = (node: GraphNode, field: PartField, source: Value | undefined, message: string) => void;
	type samplerValues = (sampler: GraphNode) => Partial<GenerateBody>;
	type textOf = (node: GraphNode | null) => string;

	/* js/graph/restore.js */
	type asObject = (value: unknown) => Record<string, unknown>;
	type graphOf = (wanted: Wanted, service: string) => Graph;
	type node = (kind: NodeKind, x: number, y: number, values?: Record<string, Value>, collapsed?: boolean) => string; // its id
	type restoreAdd = (kind: NodeKind, values: Record<string, Value>, output: string, input: string, height: number) => string;
	/** Values of a request as a client or a file gives it; what is of the wrong type is left out. */
	type wantedFrom = (data: unknown) => Wanted;

	/* js/graph/starters.js */
	/** Model → Prompt → Sampler → Image. */
	type firstGraph = (service: string) => Graph;

	/* js/graph/table.js */
	/** What is wrong with a value, or "". Only what can never be right: a number out of a model's range is judged by the service. */
	type faultOf = (spec: ValueSpec, value: unknown) => string;
	type initialValues = (kind: NodeKind) => Record<string, Value>;
	type inputOf = (kind: NodeKind, name: string) => Socket | undefined;
	type outputOf = (kind: NodeKind, name: string) => Socket | undefined;

	/* js/graph/workflow.js */
	type endFrom = (text: unknown, where: string) => End;
	type isId = (id: unknown, letter: "n" | "w") => boolean;
	type listOf = (file: Record<string, unknown>, name: string) => unknown[];
	type nodeFrom = (data: unknown, index: number) => GraphNode;
	type parse = (data: unknown) => {graph: Graph, name: string};
	type place = (value: unknown, where: string) => number;
	type require = (holds: boolean, where: string, value: unknown, words: string) => void;
	type serialise = (graph: Graph, name: string) => { format: string; version: number; name: string; nodes: GraphNode[]; wires: { id: string; from: string; to: string; }[]; };
	type valuesFrom = (kind: NodeKind, given: Record<string, unknown>, where: string) => { [x: string]: Value; };
	type wireFrom = (data: unknown, index: number) => Wire;
}
