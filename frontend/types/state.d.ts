/** What the store holds. Every value is replaced, never changed in place. */

type ServiceName = "fp4" | "bf16";

/**
 * connecting: no answer yet · ready: it draws · waiting: it answers and cannot draw now ·
 * down: it does not answer · locked: it wants a key
 */
type ServicePhase = "connecting" | "ready" | "waiting" | "down" | "locked";

interface ServiceState {
	name: ServiceName;
	address: string;
	phase: ServicePhase;
	reason: string;
	/** Whether it has ever answered while this page was open. */
	wasUp: boolean;
	key: string;
	info: Info | null;
	models: readonly Model[];
	backends: readonly Backend[];
	queue: QueueState | null;
	gpus: readonly GpuEvent[];
	loras: readonly Lora[];
	/** Why there is no list of LoRAs, or "". */
	lorasError: string;
}

/** A request of this tab that has no picture yet. `unsent` runs wait for their service. */
interface Run {
	/** Idempotency key: a request that is sent twice is one job. */
	key: string;
	service: ServiceName;
	/** The sampler that asked. */
	sampler: string;
	id: string | null;
	body: GenerateBody;
	parts: readonly RunPart[];
	phase: "unsent" | "queued" | "running" | "failed" | "cancelled";
	position: number | null;
	progress: Progress | null;
	/** The newest preview, a data URL. */
	preview: string;
	/** What a loading model says about itself. */
	loading: {what: string; fraction: number | null} | null;
	error: string;
	isCancelling: boolean;
}

/** A picture to put into the request: of the page, of a service, or the one that another run will draw. */
interface RunPart {
	field: PartField;
	source: string;
	run: string | null;
}

/** A finished job of a sampler, and which of its pictures is looked at. */
interface Shown {
	service: ServiceName;
	job: Job;
	index: number;
}

interface GalleryImage extends StoredImage {
	/** Ids are unique within a service only. */
	key: string;
	service: ServiceName;
}

interface GalleryState {
	images: readonly GalleryImage[];
	words: string;
	isComplete: boolean;
	isLoading: boolean;
	error: string;
	/** Whether the first page has come. */
	isKnown: boolean;
}

/** A LoRA file on its way. */
interface Upload {
	filename: string;
	size: number;
	fraction: number;
	/** The service it goes to, where there are several. */
	to: ServiceName | null;
	phase: "sending" | "failed";
	error: string;
}

type Panel = "gallery" | "queue" | "loras" | "machine" | "workflows";

interface State {
	services: Readonly<Partial<Record<ServiceName, ServiceState>>>;
	keyAsked: ServiceName | null;
	keyError: string;
	document: Doc;
	workflow: string;
	selection: readonly string[];
	selectedWire: string | null;
	view: "canvas" | "form";
	panel: Panel | null;
	/** What is wrong, by node and field. */
	faults: Readonly<Record<string, Readonly<Record<string, string>>>>;
	runs: readonly Run[];
	/** The newest result of each sampler. */
	shown: Readonly<Record<string, Shown>>;
	/** Jobs of before a reload, by sampler, to be shown when their service answers. */
	toShow: Readonly<Record<string, {service: ServiceName; id: string}>>;
	uploads: Readonly<Record<string, Upload>>;
	gallery: GalleryState;
	viewed: string | null;
	/** A Compare node that is looked at large. */
	compared: string | null;
	/** A short message for eyes and screen readers; a new object each time. */
	message: {text: string} | null;
	/** What only screen readers are told: eyes see it already. */
	announcement: string;
}

/** How the canvas is looked at: screen = world * scale + offset. */
interface Camera {
	x: number;
	y: number;
	scale: number;
}
