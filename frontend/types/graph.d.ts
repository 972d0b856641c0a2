/** The graph: plain data, replaced and never changed in place. */

/** What flows through a wire. */
type SocketType = "model" | "lora" | "text" | "image" | "mask" | "reference";

/** What a node holds. null: left to the model, or nothing there yet. */
type Value = string | number | boolean | null | readonly string[];

type NodeKind = "model" | "lora" | "prompt" | "negative" | "image-input" | "mask" | "references" | "sampler" | "image" | "compare" | "note";

interface GraphNode {
	id: string;
	kind: NodeKind;
	/** Its upper left corner, px of the canvas at scale 1. */
	x: number;
	y: number;
	collapsed: boolean;
	values: Readonly<Record<string, Value>>;
}

interface End {
	node: string;
	socket: string;
}

interface Wire {
	id: string;
	/** An output. */
	from: End;
	/** An input. */
	to: End;
}

interface Graph {
	nodes: Readonly<Record<string, GraphNode>>;
	wires: Readonly<Record<string, Wire>>;
}

interface Socket {
	name: string;
	type: SocketType;
	label: string;
	/** An input that takes several wires. */
	many?: boolean;
	/** An input without which nothing can be drawn. */
	needed?: boolean;
}

type ValueSpec =
	| {kind: "text"; initial: string}
	| {kind: "number"; initial: number | null; least: number; most: number; step: number; whole: boolean}
	| {kind: "choice"; initial: string; choices: readonly string[]}
	| {kind: "name"; initial: string | null}
	| {kind: "names"; initial: readonly string[]; most: number};

interface NodeType {
	title: string;
	about: string;
	width: number;
	inputs: readonly Socket[];
	outputs: readonly Socket[];
	values: Readonly<Record<string, ValueSpec>>;
}

/** One thing that an edit replaces. null: it is not there. */
type Change =
	{part: "node"; id: string; before: GraphNode | null; after: GraphNode | null} | {part: "wire"; id: string; before: Wire | null; after: Wire | null};

/** An edit of the graph. Commands of one `series` that follow each other are undone together. */
interface Command {
	label: string;
	changes: readonly Change[];
	series: string;
}

interface Edits {
	done: readonly Command[];
	undone: readonly Command[];
}

interface Doc {
	graph: Graph;
	history: Edits;
}

/** Nodes and the wires between them, to be put into a graph under new ids. */
interface Fragment {
	nodes: readonly GraphNode[];
	wires: readonly Wire[];
}

interface Box {
	x: number;
	y: number;
	width: number;
	height: number;
}

interface Point {
	x: number;
	y: number;
}

/** What a sampler draws with. */
interface Plan {
	sampler: GraphNode;
	model: GraphNode | null;
	loras: GraphNode[];
	prompt: GraphNode | null;
	negative: GraphNode | null;
	image: GraphNode | null;
	mask: GraphNode | null;
	references: GraphNode | null;
}

type PartField = "image" | "mask" | "reference_images";

/** A picture in a request: of the page (`asset:…`), of a service by its id, or the one that another sampler will draw. */
interface Part {
	field: PartField;
	source: string;
	sampler: string | null;
}

interface Fault {
	node: string;
	field: string;
	message: string;
}

/** What a sampler asks for: a body without pictures, and the pictures to put in before it is sent. */
interface Order {
	sampler: string;
	service: string;
	body: GenerateBody;
	parts: readonly Part[];
	faults: readonly Fault[];
}

/** A request in our words, from wherever it comes. What is missing is left to the model. */
interface Wanted {
	prompt?: string;
	negative_prompt?: string | null;
	model?: string | null;
	backend?: string | null;
	width?: number | null;
	height?: number | null;
	num_inference_steps?: number | null;
	guidance_scale?: number | null;
	true_cfg_scale?: number | null;
	seed?: number | null;
	num_images?: number | null;
	output_format?: string;
	/** An id, or a picture of the page. */
	image?: string | null;
	mask?: string | null;
	reference_images?: readonly string[];
	strength?: number | null;
	loras?: readonly {name: string; weight?: number; trigger_word?: string | null}[];
}

/** RGBA, row by row. */
interface Pixels {
	width: number;
	height: number;
	data: Uint8ClampedArray;
}

/** A node of a ComfyUI workflow. An input is a value, or `{from: id}`. */
interface ComfyNode {
	id: string;
	type: string;
	inputs: Record<string, unknown>;
}
