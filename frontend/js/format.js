/** Values as words for people. */

/** The worker's stages as a person would say them. @type {Record<string, string>} */
const STAGES = {
	loading: "Loading the model",
	encoding: "Reading the prompt",
	denoising: "Drawing",
	decoding: "Developing the picture",
	saving: "Saving",
	cloud: "The cloud draws"
};

/** @param {unknown} error */
export const messageOf = error => (error instanceof Error ? error.message : String(error));

/** @param {number} ms */
export function duration(ms) {
	const seconds = ms / 1000;
	if (seconds < 10) return `${seconds.toFixed(1)} s`;
	if (seconds < 60) return `${Math.round(seconds)} s`;
	return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** @param {number} bytes */
export function fileSize(bytes) {
	return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {Extent} size */
export function size({width, height}) {
	return `${width} × ${height}`;
}

/** @param {string} rfc3339 */
export function moment(rfc3339) {
	return new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "short"}).format(new Date(rfc3339));
}

/** A precision's name in the service as people write it. @param {string} name */
export function precision(name) {
	return name.toUpperCase();
}

/** @type {Fn.modelTitle} */
export function modelTitle(modelId, models) {
	return models.find(model => model.id === modelId)?.title ?? modelId;
}

/** A reason of the service without what it adds in brackets (one level inside another at most). @param {string} reason */
export function inShort(reason) {
	return reason.replace(/\s*\((?:[^()]|\([^()]*\))*\)/g, "");
}

/** @type {Fn.failedWords} */
export function failedWords(failed) {
	const seedsOf = (/** @type {string} */ why) => failed.flatMap(({message, seed}) => (message === why ? seed : [])).join(", ");
	return [...new Set(failed.map(({message}) => message))].map(why => `No picture with seed ${seedsOf(why)}: ${why}`).join("\n");
}

/** What a run does now. @param {Run} run */
export function runStatus(run) {
	if (run.phase === "failed") return "No picture";
	if (run.phase === "cancelled") return "Cancelled";
	if (run.isCancelling) return "Cancelling";
	if (run.phase === "unsent") {
		return run.parts.some(part => part.run !== null) ? "Waiting for the picture it starts from" : "Sending";
	}
	if (run.phase === "queued") {
		return run.position === null || run.position === 1 ? "Waiting, next in line" : `Waiting, number ${run.position} in line`;
	}
	return runStage(run);
}

/** The stage of a running run, without the step. @param {Run} run */
export function runStage({loading, progress}) {
	if (loading) return loading.what ? `Loading the model: ${loading.what}` : "Loading the model";
	return STAGES[progress?.stage ?? ""] ?? "Starting";
}

/** "step 3 of 8", or "" outside the sampler. @param {Run} run */
export function runStep({phase, progress}) {
	const isCounting = phase === "running" && progress && progress.step > 0;
	return isCounting ? `step ${progress.step} of ${progress.steps}` : "";
}

/** "12 s left", or "" where nobody knows. @param {Run} run */
export function eta({phase, progress}) {
	const ms = phase === "running" ? (progress?.eta_ms ?? null) : null;
	return ms !== null && ms >= 1000 ? `${duration(Math.round(ms / 1000) * 1000).replace(".0", "")} left` : "";
}

/** @type {Fn.showProgress} */
export function showProgress(bar, run) {
	const fraction = run?.loading ? run.loading.fraction : run?.progress?.steps ? run.progress.step / run.progress.steps : null;
	if (run?.phase === "running" && !fraction) bar.removeAttribute("value");
	else bar.value = run?.phase === "running" ? Number(fraction) : 0;
}
