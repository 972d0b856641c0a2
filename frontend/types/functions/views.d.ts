/** What functions of js/views/ take and return, where that is too long to stand beside them. */

declare namespace Fn {
	/* js/views/actions.js */
	type action = (label: string, icon: string, act: (picture: Picture) => unknown) => HTMLButtonElement;
	type actionsFor = (
		app: App,
		/** the picture that they act on */ choose: () => Picture | null,
		options?: {compact?: boolean; onUsed?: () => void}
	) => {row: HTMLElement; update: () => void};

	/* js/views/comparison.js */
	type showComparison = (app: App, /** of the node */ id: string) => void;

	/* js/views/confirm.js */
	type confirmed = (question: string) => Promise<boolean>;

	/* js/views/form.js */
	type addWired = (kind: NodeKind, output: string, input: string) => void;

	/* js/views/gallery.js */
	type mountGallery = (app: App, panel: HTMLElement) => void;
	type tile = (image: GalleryImage) => HTMLLIElement;

	/* js/views/loras.js */
	type entriesOf = (state: State) => LoraEntry[];
	type mountLoras = (app: App, panel: HTMLElement) => void;
	/** On each service that has it: those that share a folder know of a change already. */
	type onEach = (name: string, /** what it returns ends it */ act: (service: ServiceName, lora: Lora) => Promise<unknown>) => Promise<string>;
	type updateCard = (element: HTMLElement, entry: LoraEntry) => void;

	/* js/views/machine.js */
	type change = (what: "load" | "unload", model: string) => Promise<void>;
	type machineBlock = (service: ServiceState) => HTMLElement;
	type machineUpdateBlock = (element: HTMLElement, service: ServiceState) => void;
	type mountMachine = (app: App, panel: HTMLElement) => void;
	type updateDevice = (row: HTMLElement, gpu: GpuEvent, models: readonly Model[]) => void;

	/* js/views/panel.js */
	type mountPanel = (app: App, /** a workflow */ onOpened: () => void, /** what fills each when it is first opened */ parts: Record<Panel, () => Promise<MountPart>>) => void;

	/* js/views/queue.js */
	type mountQueue = (app: App, panel: HTMLElement) => void;
	type queueBlock = (service: ServiceState) => HTMLElement;
	type queueTool = (label: string, icon: string, name: string, act: () => void) => HTMLButtonElement;
	type queueUpdateBlock = (element: HTMLElement, service: ServiceState) => void;
	type updateRow = (element: HTMLElement, run: Run) => void;

	/* js/views/service.js */
	type isUsed = (state: State, name: ServiceName) => boolean;
	type mountNotice = (app: App, /** an address that was asked for and not taken, or "" */ refused: string) => void;
	type noticeOf = (state: State, refused: string) => {title: string, text: string, phase: string, service: ServiceName | null} | null;
	type wordsFor = (service: ServiceState, /** one that draws */ other: ServiceState | undefined) => { title: string; text: string; };

	/* js/views/topbar.js */
	/** The same prompt and seed at both precisions, side by side. */
	type compare = (app: App, canvas: Canvas, withTwin: typeof import("../../js/graph/compared.js").withTwin) => void;
	type describe = (service: ServiceState) => string;
	type mountTopbar = (app: App, canvas: Canvas, openHelp: () => void) => void;
	type pill = (service: ServiceState) => HTMLButtonElement;
	type togglePanel = (app: App, panel: Panel) => void;
	type updatePill = (element: HTMLElement, service: ServiceState) => void;

	/* js/views/viewer.js */
	type go = (distance: number) => Promise<void>;
	type viewerFactsOf = (image: GalleryImage, model: string) => [string, string][];

	/* js/views/workflows.js */
	type card = (saved: {title: string}) => HTMLLIElement;
	type mountWorkflows = (app: App, panel: HTMLElement, onOpened: () => void) => void;
	type open = (build: (service: ServiceName) => Graph, label: string, workflow?: string) => void;
	type savedWorkflows = () => {title: string, when: string, count: number, text: string}[];
	type workflowsRow = (title: string, about: string, act: () => void, ...more: Node[]) => HTMLLIElement;
}
