/** What functions of js/ take and return, where that is too long to stand beside them. */

/** The element that a selector finds: `dialog#help` a dialog, `#help` some element. */
type Found<S extends string> = S extends keyof Tags ? Tags[S] : S extends `${infer T}${"#" | "." | "["}${string}` ? (T extends keyof Tags ? Tags[T] : HTMLElement) : HTMLElement;
type Tags = HTMLElementTagNameMap & Pick<SVGElementTagNameMap, "svg">;

declare namespace Fn {
	/* js/api.js */
	type apiAt = (before: string, /** of what it is about */ name: string, after?: string) => string;
	type send = (method: string, path: string, body?: object, options?: RequestInit) => Promise<any>;
	type whileReading = <T>(body: Promise<T>) => Promise<T>;

	/* js/assets.js */
	type dataUrl = (blob: Blob) => Promise<string>;
	type keepAsset = (blob: Blob) => Promise<string>; // its name
	type readAsset = (name: string) => Promise<Blob | null>;
	type settled = <T>(request: IDBRequest<T>) => Promise<T>;
	type within = <T>(mode: IDBTransactionMode, act: (files: IDBObjectStore) => IDBRequest<T>) => Promise<T>;

	/* js/config.js */
	type ownMachine = (text: string, pageHostname: string) => string | null;
	/** Both services: the one that serves the page, the ones named by `?fp4=http://127.0.0.1:PORT` and `?bf16=…`, else the ones on the usual ports of the page's machine. An empty name means that there is none. An address elsewhere is `refused`: prompts and keys go to this machine only. */
	type serviceAddresses = (page: Location | URL, /** which service serves the page */ own?: ServiceName | null) => { addresses: Partial<Record<ServiceName, string>>; refused: string; };

	/* js/connection.js */
	type connectionSet = (patch: Partial<ServiceState>) => void;
	type isReachable = (service: ServiceState | null | undefined) => boolean;
	type newConnection = (name: ServiceName, client: ServiceClient, store: Store) => Connection;

	/* js/dom.js */
	/** A button with an icon, or words, or both. */
	type button = (options: ButtonOptions) => HTMLButtonElement;
	type chooseFiles = (accept: string, many?: boolean) => Promise<File[]>;
	/** The element, which must be there. One whose selector begins with a tag is of its type. */
	type find = <S extends string>(selector: S, root?: ParentNode) => Found<S>;
	/** A drawing, for the eye only. */
	type icon = (/** one of icons.js */ name: string, /** to draw it in */ svg?: Element) => Element;
	/** Whether keys belong to what is typed here. */
	type isTyping = (target: EventTarget | null) => boolean;
	type setAll = (element: Element, attributes: Attributes) => void;

	/* js/drops.js */
	type mountDrops = (app: App, canvas: Canvas) => void;

	/* js/editor.js */
	/** Runs and what they drew go and come with their graph: nodes of another one may have the same ids. */
	type exchange = (command: Command, other: {tag: string; workflow: string}) => void;
	type editorPut = (put: {command: Command, ids: string[]} | null) => void;
	type newEditor = (store: Store) => Editor;
	type stepBy = (from: "done" | "undone", by: step, words: string, verb: string) => void;

	/* js/event_stream.js */
	type readBlock = (block: string, onEvent: (event: StreamEvent) => void) => void;
	/** Returns when the stream ends. */
	type readEvents = (body: ReadableStream<Uint8Array>, onEvent: (event: StreamEvent) => void) => Promise<void>;

	/* js/format.js */
	/** Which pictures of a job did not come, and why. */
	type failedWords = (failed: readonly FailedImage[]) => string;
	type modelTitle = (modelId: string, models: readonly Model[]) => string;
	/** Without a value the bar shows that something goes on, of unknown length. */
	type showProgress = (bar: HTMLProgressElement, run: Run | undefined) => void;

	/* js/gallery.js */
	type gallerySet = (patch: Partial<GalleryState>) => void;
	type load = (service: ServiceName, before: string | undefined, join: (images: GalleryImage[], old: GalleryImage[]) => GalleryImage[]) => Promise<void>;
	type newGallery = (connections: Connections, store: Store) => Gallery;
	type without = (shown: Shown, imageId: string) => Shown | null;

	/* js/icons.js */
	type box = (x: number, y: number, w: number, h?: number, r?: number) => string;
	type ring = (x: number, y: number, r: number) => string;

	/* js/keys.js */
	type canvasKey = (key: string, target: EventTarget | null, isLarge: boolean) => Act;
	type commandKey = (event: KeyboardEvent) => Act;
	type mountKeys = (app: App, canvas: Canvas, openHelp: () => void) => void;
	type plainKey = (event: KeyboardEvent) => Act;

	/* js/lazy.js */
	/** Says so when a part cannot be read, which happens while the server of the page is down. */
	type whenRead = <T>(store: Store, part: Promise<T>, use: (part: T) => void) => void;

	/* js/library.js */
	type addNodes = (names: readonly (string | null)[], place: Point | null) => string[]; // ids
	/** Whether another node has it, which is selected then: a picture takes a LoRA once. */
	type isThere = (name: string, but?: string) => boolean;
	type libraryAsk = <T>(service: ServiceName, call: Call<T>) => Promise<T>;
	type newLibrary = (connections: Connections, store: Store, editor: Editor, /** brings nodes into view */ reveal: () => void) => Library;
	type rename = (before: string, after: string) => void;
	type setUpload = (nodeId: string, patch: Partial<Upload>) => void;

	/* js/main.js */
	/** Nodes grow when the models of their service are known. A view that nobody has moved is fitted to them again. */
	type fitWhenKnown = (store: Store, camera: Values<{camera: Camera}>, fitSoon: () => void) => void;
	/** Which service serves this page; null: none does. A reload while it is down remembers. */
	type ownName = () => Promise<ServiceName | null>;

	/* js/models.js */
	/** The model of the first sampler that a node is wired to. */
	type modelAfter = (state: State, node: string) => Model | null;
	/** The chosen one, else the default of the backend or the service. Null before the list is known. */
	type modelOf = (state: State, node: GraphNode | null | undefined) => Model | null;
	/** The model that a sampler draws with. */
	type modelOfSampler = (state: State, sampler: string) => Model | null;
	/** What a picture costs at least, or "". */
	type priceOf = (model: Pick<Model, "price"> | null) => string;

	/* js/opener.js */
	type newOpener = (store: Store, editor: Editor, library: Library, /** another graph is there */ onOpened: () => void) => Opener;
	/** False when it is no workflow of ComfyUI. */
	type openComfy = (data: unknown, name: string) => Promise<boolean>;
	/** A request of another program: its model may have another name here. */
	type openForeign = (wanted: Wanted, leftOut: readonly string[], name?: string) => void;
	type openOne = (file: File, place: Point | null) => Promise<void>;
	type openPicture = (file: File, place: Point | null) => Promise<void>;
	type parsed = (text: string) => unknown;
	type replace = (graph: Graph, name: string) => void;

	/* js/pause.js */
	type wait = (/** none: until it is woken */ ms?: number) => Promise<void>;

	/* js/pictures.js */
	type clear = (image: HTMLImageElement) => void;
	/** For a click on a link to a file of the service: with a key the browser cannot fetch it alone. */
	type download = (event: Event, connection: Connection) => Promise<void>;
	type save = (blob: Blob, filename: string) => void;
	/** Shows a picture of the service. With a key it is fetched with the header and shown as a blob. The newest call for an element wins. */
	type show = (image: HTMLImageElement, path: string, /** none: nothing is shown */ connection: Connection | undefined) => Promise<void>;

	/* js/runs.js */
	type byNode = (faults: readonly Fault[]) => Record<string, Record<string, string>>;
	type fail = (key: string, error: string) => void;
	type failThoseAfter = (key: string, error: string) => void;
	type isOpen = (phase: Run["phase"]) => boolean;
	type missingService = (order: Order) => Fault[];
	type newRun = (order: Order, /** of the runs of all samplers */ keys: Map<string, string>) => Run;
	type newRuns = (connections: Connections, store: Store, onPicture: (service: ServiceName) => void) => Runs;
	type onEvent = (service: ServiceName, event: StreamEvent) => undefined;
	type patch = (key: string, patch: Partial<Run>) => void;
	type pictureOf = (run: Run, part: RunPart) => Promise<string>;
	type placeOf = (sampler: string, /** of a request: `width`, `loras.1.name` … */ field: string) => { node: string; field: string; };
	/** The service's words, each at the node that its field comes from. */
	type refuse = (run: Run, error: unknown) => void;
	/** The run to show for a sampler: what draws, else what is next, else how the last one ended. */
	type runOf = (runs: readonly Run[], sampler: string) => Run | undefined;
	type runsAsk = <T>(service: ServiceName, call: Call<T>) => Promise<T>;
	type runsShow = (sampler: string, service: ServiceName, job: Job) => void;
	/** Those of a service that it knows; of every one that answers, if none is named. */
	type sent = (service?: ServiceName) => Run[];
	/** Puts the jobs of before a reload back on their nodes. */
	type showAgain = (connection: Connection) => Promise<void>;
	type update = (key: string, job: Job) => void;

	/* js/services.js */
	/** The connection of a service. Throws, saying what to do, when the page has none of that name. */
	type connectionTo = (connections: Connections, name: ServiceName) => Connection;
	/** The service to begin with: BF16 unless only FP4 answers. */
	type firstService = (state: State) => ServiceName;
	type serviceNamed = (state: State, name: unknown) => ServiceState | null;
	/** Those of the page, in order. */
	type servicesOf = (state: State) => ServiceState[];
	/** Calls `act` whenever a service comes. */
	type whenUp = (store: Store, connections: Connections, act: (connection: Connection) => void) => void;

	/* js/session.js */
	type isService = (name: unknown) => name is ServiceName;
	/** The keys that were typed in this tab, by address. */
	type readKeys = () => Record<string, string>;
	/** A key that was typed on another page than the main one. */
	type rememberKey = (address: string, key: string) => void;
	type restore = () => Partial<State> | null; // null when there is nothing to go on with
	type runFrom = (saved: unknown) => Run[];
	type sessionWrite = (name: string, values: unknown) => void;
	type shownFrom = (entry: [string, unknown]) => (string | { service: ServiceName; id: string; })[][];

	/* js/sizes.js */
	/** One size for each shape, of about the area of the model's default, within its limits; and the largest square. */
	type presets = (model: Model) => Size[];

	/* js/store.js */
	type initialService = (name: ServiceName, address: string) => ServiceState;
	type setService = (name: ServiceName, patch: Partial<ServiceState>) => void;
}
