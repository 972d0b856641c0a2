/** What the services answer, as far as the page reads it. */

interface Health {
	status: "ok" | "unavailable";
	reason: string | null;
}

interface Device {
	worker: string;
	kind: "gpu" | "cpu";
	name: string;
	memory_mib: number | null;
}

interface Info {
	service: string;
	version: string;
	precision: string;
	default_model: string;
	default_model_reason: string;
	devices: Device[];
	output_formats: string[];
	key_needed: boolean;
	/** Fields of a request and routes that this version of the service refuses by name. */
	not_built?: {fields: string[]; routes: string[]};
}

interface WorkerState {
	name: string;
	state: string;
	job_id: string | null;
	model: string | null;
	engine: string | null;
	device: string | null;
	memory_mib: number | null;
	/** What is being fetched or loaded. */
	loading: {what: string; fraction: number | null} | null;
}

interface QueueState {
	paused: boolean;
	/** What everything waits for, or null. */
	held: string | null;
	running: string[];
	queued: number;
	max_queue_size: number;
	workers: WorkerState[];
}

/** One worker's device in a `gpu` event. */
interface GpuEvent {
	worker: string;
	state: string;
	model: string | null;
	memory_mib: number | null;
	cards: {index: number; name: string; memory_total_mib: number; memory_used_mib?: number | null; utilization_percent?: number | null}[];
}

interface StoredLora {
	name: string;
	filename: string;
	sha256: string;
	size_bytes: number;
	rank: number | null;
	format: string;
	base_model: string | null;
	trigger_words: string[];
	compatible_models: string[];
	created_at: string;
	/** Why nothing can apply it, or null. */
	refusal?: string | null;
	/** Ships with the project: it stays. */
	builtin?: boolean;
}

/** A LoRA that is being fetched has a name and not much more. */
type Lora = Pick<StoredLora, "name"> & Partial<StoredLora>;

interface Backend {
	id: string;
	default_model?: string;
}

interface Model {
	id: string;
	title: string;
	description: string;
	backend: string;
	licence: string;
	is_default: boolean;
	available: boolean;
	reason: string | null;
	defaults: {width: number; height: number; num_inference_steps: number; guidance_scale: number; true_cfg_scale: number};
	limits: {min_size: number; max_size: number; size_multiple: number};
	/** What it can begin with: text, image, mask, references. */
	ways?: string[];
	/** Whether its weights are on disk. */
	downloaded?: boolean;
	takes_loras?: boolean;
	takes_negative_prompt?: boolean;
	uses_steps?: boolean;
	uses_seed?: boolean;
	/** What a picture costs at a cloud, in words; null or absent: nothing. */
	price?: string | null;
	uses_guidance_scale: boolean;
	example_prompts: string[];
}

/** The body of `POST /jobs`. Left out: the model's default. */
interface GenerateBody {
	prompt: string;
	negative_prompt?: string;
	model?: string;
	backend?: string;
	width?: number;
	height?: number;
	num_inference_steps?: number;
	guidance_scale?: number;
	true_cfg_scale?: number;
	seed?: number;
	num_images?: number;
	output_format?: string;
	loras?: readonly LoraWanted[];
	image?: string;
	mask?: string;
	strength?: number;
	reference_images?: readonly string[];
}

interface Submitted {
	id: string;
	status: string;
	position: number | null;
}

interface LoraChanges {
	name?: string;
	trigger_words?: string[];
}

interface LoraWanted {
	name: string;
	weight: number;
	trigger_word?: string;
}

/** A request with nothing left open, as the service keeps it. */
interface GenerationRequest {
	prompt: string;
	negative_prompt: string | null;
	model: string;
	width: number;
	height: number;
	num_inference_steps: number;
	guidance_scale: number;
	true_cfg_scale: number;
	seed: number;
	num_images: number;
	output_format: string;
	loras: {name: string; weight: number; trigger_words?: string[]}[];
}

interface Progress {
	stage: string;
	step: number;
	steps: number;
	eta_ms: number | null;
}

interface JobImage {
	id: string;
	filename: string;
	image_url: string;
	download_url: string;
	seed: number;
	width: number;
	height: number;
}

/** A picture that did not come where others of its job did. */
interface FailedImage {
	index: number;
	seed: number;
	code: string;
	message: string;
}

interface JobResult {
	precision: string;
	engine: string;
	device: string;
	images: JobImage[];
	failed_images: FailedImage[];
	loras_applied: {name: string; weight: number; matched_keys: number; unmatched_keys: number}[];
	timings_ms: Record<string, number>;
	generation_time_ms: number;
	cost_usd?: number;
}

type JobStatus = "queued" | "running" | "succeeded" | "failed" | "cancelled";

interface Job {
	id: string;
	status: JobStatus;
	request: GenerationRequest;
	created_at: string;
	position: number | null;
	progress: Progress | null;
	result: JobResult | null;
	error: {code: string; message: string} | null;
}

/** A picture of the gallery. */
interface StoredImage {
	id: string;
	job_id: string;
	filename: string;
	image_url: string;
	download_url: string;
	thumbnail_url: string;
	seed: number;
	width: number;
	height: number;
	size_bytes: number;
	created_at: string;
	generation_time_ms: number | null;
	prompt: string;
	precision: string;
	engine: string;
	/** Cleanup leaves it. */
	pinned: boolean;
	request: GenerationRequest;
}

interface FieldError {
	field: string;
	message: string;
}

type Ask<T> = (path: string, options?: RequestInit) => Promise<T>;

/** One service. Each call throws `Unreachable` when it gets no answer, and a `Problem` when the service says that something is wrong. */
interface ServiceClient {
	/** Origin of the service. */
	address: string;
	sendsKey: () => boolean;
	/** What program this is; answered without a key. */
	live: () => Promise<{service: string}>;
	/** Whether a job can be taken now. 503 is an answer here and no problem. */
	ready: () => Promise<Health>;
	info: () => Promise<Info>;
	models: () => Promise<{models: Model[]}>;
	backends: () => Promise<{backends: Backend[]}>;
	submit: (body: GenerateBody, idempotencyKey: string) => Promise<Submitted>;
	job: (id: string) => Promise<Job>;
	cancel: (id: string) => Promise<{cancelled: boolean; status: string}>;
	changeQueue: (what: "pause" | "resume" | "clear") => Promise<QueueState>;
	/** Everything that happens, until the stream ends. */
	events: (onEvent: (event: StreamEvent) => void, signal: AbortSignal) => Promise<void>;
	/** Pictures, newest first, older than `before`, whose prompt has the words. */
	images: (page: {limit: number; before?: string; words?: string}) => Promise<{images: StoredImage[]}>;
	deleteImage: (id: string) => Promise<unknown>;
	/** Whether cleanup leaves a picture. */
	pinImage: (id: string, isPinned: boolean) => Promise<unknown>;
	loras: () => Promise<{loras: Lora[]}>;
	changeLora: (name: string, changes: LoraChanges) => Promise<StoredLora>;
	deleteLora: (name: string) => Promise<unknown>;
	/** Sends a file as it is, telling how far it is, from 0 to 1. */
	uploadLora: (file: File, onProgress: (fraction: number) => void) => Promise<StoredLora>;
	loadModel: (model: string) => Promise<unknown>;
	unloadModel: () => Promise<unknown>;
	/** Of a fleet's front door. */
	fleet: () => Promise<Fleet>;
	/** Of the last 24 hours. */
	imageStats: () => Promise<ImageStats>;
	fleetSettings: () => Promise<{image_generation: boolean}>;
	switchImages: (isOn: boolean) => Promise<unknown>;
	/** A machine begins nothing new, or takes part again. */
	drain: (node: string, isAway: boolean) => Promise<unknown>;
	/** The description of all routes. */
	openapi: () => Promise<OpenApi>;
	/** A file, with the key in the header. */
	blob: (path: string) => Promise<Blob>;
}
