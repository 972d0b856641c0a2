/** The parts that views are given. */

type Connection = import("../js/connection.js").Connection;
type Connections = Readonly<Partial<Record<ServiceName, Connection>>>;
type Editor = import("../js/editor.js").Editor;
type Gallery = import("../js/gallery.js").Gallery;
type Library = import("../js/library.js").Library;
type Opener = import("../js/opener.js").Opener;
type Problem = import("../js/api.js").Problem;
type Runs = import("../js/runs.js").Runs;
type Store = import("../js/store.js").Store;
type Values<S extends object> = import("../js/store.js").Values<S>;
type Wires = import("../js/canvas/wires.js").Wires;

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

interface ButtonOptions {
	label: string;
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
