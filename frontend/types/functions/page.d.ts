/** What functions of js/ take and return, where that is too long to stand beside them. */

/** js/event_stream.js */
declare namespace EventStreamFn {
	type readBlock = (block: string, onEvent: (event: StreamEvent) => void) => void;
}

/** js/api.js */
declare namespace ApiFn {
	type at = (before: string, /** of what it is about */ name: string, after?: string) => string;
}

/** js/assets.js */
declare namespace AssetsFn {
	type keepAsset = (blob: Blob) => Promise<string>; // its name
	type readAsset = (name: string) => Promise<Blob | null>;
}

/** js/format.js */
declare namespace FormatFn {
	type failedWords = (failed: readonly FailedImage[]) => string;
	type modelTitle = (modelId: string, models: readonly Model[]) => string;
	type showProgress = (bar: HTMLProgressElement, run: Run | undefined) => void;
}

/** js/icons.js */
declare namespace IconsFn {
	type ring = (x: number, y: number, r: number) => string;
}

/** js/dom.js */
declare namespace DomFn {
	type setAll = (element: Element, attributes: Record<string, string | number | boolean>) => void;
	type icon = (/** one of icons.js */ name: string, /** to draw it in */ svg?: Element) => Element;
	type chooseFiles = (accept: string, many?: boolean) => Promise<File[]>;
}

/** js/services.js */
declare namespace ServicesFn {
	type serviceNamed = (state: State, name: unknown) => ServiceState | null;
	type connectionTo = (connections: Connections, name: ServiceName) => Connection;
}

/** js/runs.js */
declare namespace RunsFn {
	type onEvent = (service: ServiceName, event: StreamEvent) => undefined;
	type runOf = (runs: readonly Run[], sampler: string) => Run | undefined;
	type newRun = (order: Order, /** of the runs of all samplers */ keys: Map<string, string>) => Run;
}

/** js/session.js */
declare namespace SessionFn {
	type restore = () => Partial<State> | null; // null when there is nothing to go on with
}

/** js/editor.js */
declare namespace EditorFn {
	type setValues = (id: string, values: Readonly<Record<string, Value>>) => void;
	type add = (kind: NodeKind, place: Point, values?: Record<string, Value>) => GraphNode;
	type replace = (graph: Graph, label: string, /** its name */ workflow?: string) => void;
	type put = (put: {command: Command, ids: string[]} | null) => void;
}

/** js/gallery.js */
declare namespace GalleryFn {
	type load = (service: ServiceName, before: string | undefined, join: (images: GalleryImage[], old: GalleryImage[]) => GalleryImage[]) => Promise<void>;
	type without = (shown: Shown, imageId: string) => Shown | null;
}

/** js/keys.js */
declare namespace KeysFn {
	type canvasKey = (key: string, target: EventTarget | null, isLarge: boolean) => Act;
}

/** js/library.js */
declare namespace LibraryFn {
	type add = (files: readonly File[], /** of the first; null: left of the Model nodes */ place?: Point | null) => Promise<void>;
	type change = (service: ServiceName, lora: Lora, changes: LoraChanges) => Promise<string>; // what went wrong, or ""
	type addNodes = (names: readonly (string | null)[], place: Point | null) => string[]; // ids
	type setUpload = (nodeId: string, patch: Partial<Upload>) => void;
}

/** js/models.js */
declare namespace ModelsFn {
	type modelOf = (state: State, node: GraphNode | null | undefined) => Model | null;
}

/** js/opener.js */
declare namespace OpenerFn {
	type open = (files: readonly File[], /** on the canvas */ place?: Point | null) => Promise<void>;
	type openText = (/** of a workflow */ text: string, name: string) => Promise<void>;
	type openRequest = (request: unknown, service: ServiceName, /** of one of its pictures */ seed: number) => void;
	type openForeign = (wanted: Wanted, leftOut: readonly string[], name?: string) => void;
}

/** js/store.js */
declare namespace StoreFn {
	type initialService = (name: ServiceName, address: string) => ServiceState;
	type setService = (name: ServiceName, patch: Partial<ServiceState>) => void;
}

/** js/main.js */
declare namespace MainFn {
	type fitWhenKnown = (store: Store, camera: Values<{camera: Camera}>, fitSoon: () => void) => void;
}
