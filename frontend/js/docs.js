/** The HTTP reference: /openapi.json as a page. */

import {serviceClient} from "./api.js";
import {ownService} from "./config.js";
import {find, make} from "./dom.js";
import {messageOf} from "./format.js";
import {readKeys} from "./session.js";

async function main() {
	const url = ownService(location) ?? location.origin;
	const key = readKeys()[url] ?? "";
	const operations = find("#operations");
	try {
		const openapi = await serviceClient(url, () => key).openapi();
		const all = Object.entries(openapi.paths).flatMap(([path, methods]) =>
			Object.entries(methods).map(([method, operation]) => section(openapi, url + path, `${method.toUpperCase()} ${path}`, operation))
		);
		operations.replaceChildren(...all);
	} catch (error) {
		operations.replaceChildren(make("p.error", `The reference could not be read: ${messageOf(error)}`));
	}
}

/** @param {OpenApi} openapi @param {string} address @param {string} name @param {Operation} operation */
function section(openapi, address, name, {parameters = [], requestBody, summary = "", responses}) {
	const body = bodyOf(openapi, requestBody?.content["application/json"]?.schema ?? {});
	const rows = [
		...parameters.map(item => row(`${item.name} (${item.in})`, {description: item.description, ...item.schema}, item.required)),
		...Object.entries(body.properties ?? {}).map(([field, schema]) => row(field, schema, body.required?.includes(field)))
	];
	return make(
		"section.operation",
		make("h2", make("code", name)),
		make("p", summary),
		...(rows.length ? [make("table", make("tbody", ...rows))] : []),
		...(body.example ? [make("pre", `curl -s '${address}' -H 'Content-Type: application/json' -d '${JSON.stringify(body.example)}'`)] : []),
		make("p.hint", `Answers: ${Object.keys(responses).join(", ")}`)
	);
}

/** The schema of the JSON body; the first one where several are taken. @param {OpenApi} openapi @param {Schema} given */
function bodyOf(openapi, given) {
	const resolved = (/** @type {Schema} */ schema) => (schema.$ref && openapi.components?.schemas?.[nameOf(schema.$ref)]) || schema;
	const schema = resolved(given);
	return schema.anyOf?.[0] ? resolved(schema.anyOf[0]) : schema;
}

/** @param {string} reference */
const nameOf = reference => reference.split("/").at(-1) ?? reference;

/** @param {string} name @param {Schema} schema @param {boolean} [isRequired] */
function row(name, schema, isRequired = false) {
	const {default: fallback = null, description = ""} = schema;
	return make(
		"tr",
		make("td", make("code", name), isRequired ? " (required)" : ""),
		make("td", inWords(schema)),
		make("td", description, fallback === null ? "" : ` Default: ${JSON.stringify(fallback)}.`)
	);
}

/** @param {Schema} schema @returns {string} */
function inWords({anyOf, $ref, enum: choices, type = "any", items = {}, minimum, maximum, maxLength, maxItems}) {
	if (anyOf) return anyOf.map(inWords).join(" or ");
	if ($ref) return nameOf($ref);
	if (choices) return choices.join(" | ");
	const limits = Object.entries({"≥": minimum, "≤": maximum, "length ≤": maxLength, "at most": maxItems});
	const words = limits.flatMap(([sign, limit]) => (limit === undefined ? [] : `${sign} ${limit}`));
	return [type === "array" ? `list of ${inWords(items)}` : type, ...words].join(", ");
}

void main();
