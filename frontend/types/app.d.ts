/** The parts that views are given. */

type Connections = Readonly<Partial<Record<ServiceName, Connection>>>;
/** Of a ComfyUI workflow. */
type Reader = InstanceType<typeof import("../js/graph/comfy.js").Reader>;
type Problem = import("../js/api.js").Problem;
type Store = import("../js/store.js").Store;
type Values<S extends object> = import("../js/store.js").Values<S>;
type Wires = import("../js/canvas/wires.js").Wires;

/** One service: whether it answers, and what happens there. */
interface Connection {
	readonly name: ServiceName;
	readonly state: ServiceState;
	/** Whether files must be fetched with the key, and cannot be named in `src` or `href`. */
	readonly sendsKey: boolean;
	url: (path: string) => string;
	listen: (listener: (event: StreamEvent) => void) => void;
	/** Looks after the service for as long as the page lives. */
	run: () => Promise<void>;
	/** The answer of a call. One that got none, or that wants a key, tells the whole page. */
	ask: <T>(call: Call<T>) => Promise<T>;
	useKey: (key: string) => void;
}

/** Edits of the graph, as commands that can be undone; what is selected; what was copied. */
interface Editor {
	readonly graph: Graph;
	do: (command: Command | null) => void;
	undo: () => void;
	redo: () => void;
	/** The next edit begins a step of undo of its own. */
	endSeries: () => void;
	/** Typing into one field is one series. */
	setValues: (id: string, values: Readonly<Record<string, Value>>) => void;
	add: (kind: NodeKind, place: Point, values?: Record<string, Value>) => GraphNode;
	replace: (graph: Graph, label: string, /** its name */ workflow?: string) => void;
	select: (ids: readonly string[]) => void;
	/** The selected nodes, or the selected wire. */
	deleteSelected: () => void;
	/** A picture to draw from: in an Image input node at the place, else in the one that the sampler has. */
	useAsInput: (image: string, place?: Point | null) => void;
	/** The selected nodes, as a workflow's text to paste here or in another tab; "" for none. */
	copied: () => string;
	/** Throws for a text that is no workflow. */
	paste: (text: string) => void;
	duplicate: () => void;
}

/** The pictures on disk, of both services: pages of them, search, deleting one. */
interface Gallery {
	/** Refreshes whenever a service comes, or the tab is looked at again. */
	follow: () => void;
	/** Reads the newest pictures of a service; older ones that were loaded stay. */
	refresh: (service: ServiceName) => Promise<void>;
	/** Pictures whose prompt has these words. */
	search: (words: string) => Promise<void>;
	/** Reads the next older pictures. */
	loadMore: () => Promise<void>;
	/** Deletes a picture on disk. True when it is gone. */
	delete: (image: GalleryImage) => Promise<boolean>;
	/** Pins a picture, or lets cleanup have it again. */
	pin: (image: GalleryImage) => Promise<void>;
}

/** LoRAs: the libraries of both services, files on their way there, and the nodes that use them. */
interface Library {
	/** Reads the lists whenever a service comes. */
	follow: () => void;
	refresh: (service: ServiceName) => Promise<void>;
	/** Uploads files, each with a node of its own, wired to every Model node. */
	add: (files: readonly File[], /** of the first; null: left of the Model nodes */ place?: Point | null) => Promise<void>;
	/** A node for a LoRA of the library. */
	use: (name: string) => void;
	/** Sends the file of a node again. */
	again: (nodeId: string) => Promise<void>;
	change: (service: ServiceName, lora: Lora, changes: LoraChanges) => Promise<string>; // what went wrong, or ""
	delete: (service: ServiceName, lora: Lora) => Promise<void>;
	/** A file for a node that is there: to every service that answers and does not have it already. */
	fill: (nodeId: string, file: File) => Promise<void>;
}

/** Files that are dropped, pasted or chosen. */
interface Opener {
	open: (files: readonly File[], /** on the canvas */ place?: Point | null) => Promise<void>;
	openText: (/** of a workflow */ text: string, name: string) => Promise<void>;
	/** The graph of a picture's request. */
	openRequest: (request: unknown, service: ServiceName, /** of one of its pictures */ seed: number) => void;
}

/** Requests on their way to a picture. */
interface Runs {
	/** Runs every sampler, or these, and the ones they start from. False when something is missing; then it is said where. */
	start: (wanted?: readonly string[]) => boolean;
	cancel: (key: string) => Promise<void>;
	cancelAll: () => void;
	/** The same request once more. */
	retry: (key: string) => void;
	dismiss: (key: string) => void;
	/** Follows the open runs for as long as the page lives. */
	follow: () => void;
}

/** What a key does; undefined: nothing. */
type Act = (() => void) | undefined;
type Bytes = DataView<ArrayBuffer>;
type Call<T> = (client: ServiceClient) => Promise<T>;
type Timer = ReturnType<typeof setTimeout> | undefined;

/** What fills a panel when it is first opened; `onOpened` is told of a workflow. */
type MountPart = (app: App, body: HTMLElement, onOpened: () => void) => void;

/** px. */
interface Extent {
	width: number;
	height: number;
}

/** Of a new element; a function is what an event does. */
type Attributes = Record<string, string | number | boolean | ((event: any) => unknown)>;

interface ButtonOptions {
	/** For those who do not see it, where the words are not enough. */
	label?: string;
	icon?: string;
	words?: string;
	kind?: string;
	act: (event: MouseEvent) => void;
}

/** A field of a node. */
interface FieldOptions {
	name: string;
	label: string;
	/** The request's fields whose faults stand here. */
	errors?: string[];
}

interface MenuOptions {
	/** On the screen, px. */
	at: Point;
	label: string;
	items: readonly MenuItem[];
	search?: boolean;
}

/** What the parts of the canvas share. */
interface CanvasParts {
	root: HTMLElement;
	app: App;
	boxOf: (id: string) => Box;
	setCamera: (camera: Camera) => void;
}

/** One Server-Sent Event. */
interface StreamEvent {
	name: string;
	data: any;
}

interface App {
	store: Store;
	camera: Values<{camera: Camera}>;
	connections: Connections;
	editor: Editor;
	gallery: Gallery;
	library: Library;
	opener: Opener;
	runs: Runs;
}

/** What the view of one node is given. It ends when the node or its place goes. */
interface NodeContext {
	app: App;
	id: string;
	place: "canvas" | "form";
	/** The node as it is now. */
	node: () => GraphNode;
	set: (values: Record<string, Value>) => void;
	/** Like `Store.watch`, for as long as the view lives. */
	watch: <T extends unknown[]>(select: (state: State) => [...T], react: (...values: NoInfer<T>) => void) => void;
}

/** How a type of node looks: fills the body, returns nothing. */
type MountNode = (body: HTMLElement, context: NodeContext) => void;

/** What the rest of the page may ask of the canvas. */
interface Canvas {
	element: HTMLElement;
	boxOf: (id: string) => Box;
	fit: () => void;
	zoom: (factor: number) => void;
	actualSize: () => void;
	arrange: () => void;
	search: () => void;
	placeOf: (event: {clientX: number; clientY: number}) => Point;
}

/** What a pointer has begun. */
interface Gesture {
	move: (point: Point, event: PointerEvent) => void;
	end: (point: Point, event: PointerEvent) => void;
	cancel?: () => void;
}

type Way = "in" | "out";

interface SocketEnd {
	end: End;
	side: Way;
}

interface MenuItem {
	words: string;
	hint?: string;
	icon?: string;
	/** Of a socket, for the colour. */
	type?: string;
	/** That do the same. */
	keys?: string;
	off?: boolean;
	act: () => void;
}

/** One of the two pictures of a Compare node. */
interface Side {
	key: string;
	label: string;
	read: () => Promise<Blob | null>;
	result: JobResult | null;
	memory: number | null;
}

/** A LoRA, and the services that have it. */
interface LoraEntry {
	lora: Lora;
	services: ServiceName[];
}

/** A picture of a service that something can be done with. */
interface Picture {
	id: string;
	filename: string;
	download_url: string;
	seed: number;
	request: GenerationRequest;
	service: ServiceName;
}

interface Size {
	name: string;
	width: number;
	height: number;
}

/** What is read of an OpenAPI document. */
interface Schema {
	$ref?: string;
	type?: string;
	enum?: string[];
	anyOf?: Schema[];
	items?: Schema;
	minimum?: number;
	maximum?: number;
	maxLength?: number;
	maxItems?: number;
	description?: string;
	default?: unknown;
	example?: unknown;
	properties?: Record<string, Schema>;
	required?: string[];
}

interface Operation {
	summary?: string;
	parameters?: {name: string; in: string; required?: boolean; description?: string; schema: Schema}[];
	responses: Record<string, unknown>;
	requestBody?: {content: Record<string, {schema: Schema}>};
}

interface OpenApi {
	paths: Record<string, Record<string, Operation>>;
	components?: {schemas?: Record<string, Schema>};
}
