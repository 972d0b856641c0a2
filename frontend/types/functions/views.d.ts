/** What functions of js/views/ take and return, where that is too long to stand beside them. */

/** js/views/topbar.js */
declare namespace TopbarViewFn {
	type mountTopbar = (app: App, canvas: Canvas, openHelp: () => void) => void;
	type updatePill = (element: HTMLElement, service: ServiceState) => void;
	type compare = (app: App, canvas: Canvas, withTwin: typeof import("../../js/graph/compared.js").withTwin) => void;
}

/** js/views/actions.js */
declare namespace ActionsViewFn {
	type actionsFor = (
		app: App,
		/** the picture that they act on */ choose: () => Picture | null,
		options?: {compact?: boolean; onUsed?: () => void}
	) => {row: HTMLElement; update: () => void};
	type action = (label: string, icon: string, act: (picture: Picture) => unknown) => HTMLButtonElement;
}

/** js/views/form.js */
declare namespace FormViewFn {
	type addWired = (kind: NodeKind, output: string, input: string) => void;
}

/** js/views/panel.js */
declare namespace PanelViewFn {
	type mountPanel = (app: App, /** a workflow */ onOpened: () => void, /** what fills each when it is first opened */ parts: Record<Panel, () => Promise<MountPart>>) => void;
}

/** js/views/service.js */
declare namespace ServiceViewFn {
	type mountNotice = (app: App, /** an address that was asked for and not taken, or "" */ refused: string) => void;
	type noticeOf = (state: State, refused: string) => {title: string, text: string, phase: string, service: ServiceName | null} | null;
}

/** js/views/queue.js */
declare namespace QueueViewFn {
	type updateBlock = (element: HTMLElement, service: ServiceState) => void;
	type tool = (label: string, icon: string, name: string, act: () => void) => HTMLButtonElement;
}

/** js/views/loras.js */
declare namespace LorasViewFn {
	type onEach = (name: string, /** what it returns ends it */ act: (service: ServiceName, lora: Lora) => Promise<unknown>) => Promise<string>;
}

/** js/views/machine.js */
declare namespace MachineViewFn {
	type change = (what: "load" | "unload", model: string) => Promise<void>;
	type updateBlock = (element: HTMLElement, service: ServiceState) => void;
	type updateDevice = (row: HTMLElement, gpu: GpuEvent, models: readonly Model[]) => void;
}

/** js/views/workflows.js */
declare namespace WorkflowsViewFn {
	type open = (build: (service: ServiceName) => Graph, label: string, workflow?: string) => void;
	type mountWorkflows = (app: App, panel: HTMLElement, onOpened: () => void) => void;
	type row = (title: string, about: string, act: () => void, ...more: Node[]) => HTMLLIElement;
	type savedWorkflows = () => {title: string, when: string, count: number, text: string}[];
}

/** js/views/viewer.js */
declare namespace ViewerViewFn {
	type factsOf = (image: GalleryImage, model: string) => [string, string][];
}
