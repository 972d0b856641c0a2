/** The fleet's dashboard: machines, what they do and did. Asked anew every two seconds while somebody looks. */

import {Problem, serviceClient} from "./api.js";
import {ownService} from "./config.js";
import {button, find, keep, make} from "./dom.js";
import {duration, messageOf, moment} from "./format.js";
import {readKeys, rememberKey} from "./session.js";

const PAUSE_MS = 2000;
const address = ownService(location) ?? location.origin;
const client = serviceClient(address, () => readKeys()[address] ?? "");

const state = find("#state");
const switchOn = find("input#on");

/** Of the looks and changes: what was asked before the last of them is old when it comes. */
let turn = 0;

async function look() {
	const mine = ++turn;
	try {
		const [fleet, stats, settings] = await Promise.all([client.fleet(), client.imageStats(), client.fleetSettings()]);
		if (mine !== turn) return;
		find("#key-form").hidden = true;
		switchOn.disabled = false;
		switchOn.checked = settings.image_generation;
		state.textContent = fleet.held ?? (fleet.nodes.length ? "" : "No machine is up.");
		showFigures(fleet, stats);
		showNodes(fleet.nodes);
		showDay(stats);
		showRecent(stats.recent);
		keep(find("#decisions"), fleet.decisions, each => each.job_id, each => make("li", make("code", each.job_id.slice(-8)), ` ${each.model} → ${each.node_id}: ${each.reason}`));
	} catch (error) {
		find("#key-form").hidden = !(error instanceof Problem && error.status === 401);
		state.textContent = messageOf(error);
	}
}

/** @param {Fleet} fleet @param {ImageStats} stats */
function showFigures({nodes, queued, running}, stats) {
	const replicas = nodes.flatMap(node => node.replicas);
	const figures = {
		Machines: nodes.length,
		Replicas: replicas.length,
		Waiting: queued,
		Running: running,
		"Pictures in 24 h": stats.completed,
		"Failed in 24 h": stats.failed,
		"Mean time": stats.completed ? duration(stats.avg_generation_ms) : "–"
	};
	find("#figures").replaceChildren(...Object.entries(figures).map(([name, value]) => make("div", make("dt", name), make("dd", typeof value === "number" ? value.toLocaleString("en") : value))));
}

/** @param {FleetNode[]} nodes */
function showNodes(nodes) {
	keep(
		find("#nodes"),
		nodes,
		node => `${node.node_id} ${node.is_draining}`,
		node => {
			const act = () => void after(client.drain(node.node_id, !node.is_draining));
			const words = node.is_draining ? "Take part again" : "Drain";
			return make("article.card", make("header", make("h3", node.node_id), make("p.hint.drained"), button({label: `${words}: ${node.node_id}`, words, act})), make("ul"));
		},
		(element, node) => {
			find(".drained", element).textContent = node.is_drained ? "Drained" : node.is_draining ? "Draining" : "";
			find("ul", element).replaceChildren(...node.replicas.map(replica));
		}
	);
}

/** @param {Replica} each */
function replica(each) {
	const [phase, doing] = stateOf(each);
	const kinds = [each.precision.toUpperCase(), ...each.resources.filter(name => name !== each.precision)].join(" + ");
	const cards = each.cards.flatMap(card => {
		if (card.memory_used_mib === undefined) return [];
		const words = `${card.name}: ${(card.memory_used_mib / 1024).toFixed(1)} of ${(card.memory_total_mib / 1024).toFixed(0)} GiB, ${card.utilization_percent ?? "?"} %`;
		return [make("span.hint", words), make("meter", {min: 0, max: card.memory_total_mib, value: card.memory_used_mib, "aria-label": words})];
	});
	const held = each.models.length ? each.models.join(", ") : "no model loaded";
	return make(
		"li",
		make("p", make("span.dot", {"data-phase": phase}), `${each.name.split("/").at(-1)} · ${kinds} · ${doing}`),
		!each.is_asleep && make("span.hint", `${held} · ${each.memory_mib ?? 0} MiB · processors ${Math.round(each.processors * 100)} %`),
		each.deaths_last_10_minutes > 0 && make("span.error", `Its worker ended: ${each.last_death}`),
		...cards
	);
}

/** The dot's phase and the words beside it. @param {Replica} each @returns {[string, string]} */
function stateOf({state, is_asleep, loading, job_ids}) {
	if (is_asleep) return ["asleep", "asleep"];
	if (loading) return ["locked", loading.fraction === null ? `loads ${loading.what}` : `loads ${loading.what}, ${Math.round(loading.fraction * 100)} %`];
	if (job_ids.length) return ["ready", job_ids.length === 1 ? "draws" : `draws ${job_ids.length} together`];
	return [{idle: "ready", busy: "ready", starting: "locked", loading: "locked"}[state] ?? "down", state];
}

/** @param {ImageStats} stats */
function showDay(stats) {
	const parts = {"By machine": stats.by_node, "By model": stats.by_model, "By tag": stats.by_tag};
	find("#day").replaceChildren(
		...Object.entries(parts).map(([name, counts]) => {
			const rows = Object.entries(counts).sort(([, one], [, other]) => other - one);
			const most = rows[0]?.[1] ?? 1;
			const list = rows.map(([key, count]) => make("li", make("span", `${key}: ${count}`), make("meter", {min: 0, max: most, value: count, "aria-label": `${key}: ${count}`})));
			return make("article.card", make("header", make("h3", name)), rows.length ? make("ul", ...list) : make("p.hint", "Nothing yet"));
		})
	);
}

/** @param {ImageEvent[]} events */
function showRecent(events) {
	const cell = (/** @type {string} */ text) => make("td", text);
	find("#recent").replaceChildren(
		...[...events].reverse().map(each =>
			make("tr", cell(moment(each.timestamp)), cell(each.model), cell(each.node_id), each.error ? make("td.error", each.error) : cell(duration(each.generation_ms)), cell(`${each.width} × ${each.height}`), cell(each.tags.join(", ")))
		)
	);
}

/** @param {Promise<unknown>} change */
async function after(change) {
	turn++;
	try {
		await change;
	} catch (error) {
		state.textContent = messageOf(error);
		return;
	}
	await look();
}

switchOn.addEventListener("change", () => void after(client.switchImages(switchOn.checked)));
find("#key-form").addEventListener("submit", event => {
	event.preventDefault();
	rememberKey(address, find("input#key").value);
	void look();
});

async function main() {
	for (;;) {
		if (!document.hidden) await look();
		await new Promise(resolve => setTimeout(resolve, PAUSE_MS));
	}
}

void main();
