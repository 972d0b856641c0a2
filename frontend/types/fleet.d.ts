/** What a fleet's front door tells its dashboard. */

interface Replica {
	name: string;
	state: string;
	precision: string;
	/** What it can do: its precision, and mflux where its commands are. */
	resources: string[];
	deaths_last_10_minutes: number;
	last_death: string | null;
	job_ids: string[];
	models: string[];
	loading: {what: string; fraction: number | null} | null;
	memory_mib: number | null;
	is_asleep: boolean;
	/** How busy the machine's processors are, 0 to 1. */
	processors: number;
	cards: {name: string; memory_total_mib: number; memory_used_mib?: number; utilization_percent?: number | null}[];
}

interface FleetNode {
	node_id: string;
	is_draining: boolean;
	is_drained: boolean;
	replicas: Replica[];
}

interface Fleet {
	queued: number;
	running: number;
	held: string | null;
	nodes: FleetNode[];
	decisions: {job_id: string; model: string; node_id: string; reason: string}[];
}

interface ImageEvent {
	timestamp: string;
	model: string;
	node_id: string;
	status: string;
	generation_ms: number;
	width: number;
	height: number;
	tags: string[];
	error: string;
}

interface ImageStats {
	total: number;
	completed: number;
	failed: number;
	avg_generation_ms: number;
	by_node: Record<string, number>;
	by_model: Record<string, number>;
	by_tag: Record<string, number>;
	recent: ImageEvent[];
}
