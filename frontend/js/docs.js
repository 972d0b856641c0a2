/** The HTTP reference: /openapi.json as a page. */

import { ServiceClient } from "./api.js";
import { ownService } from "./config.js";
import { find, make } from "./dom.js";
import { readKeys } from "./session.js";

/**
 * What is read of an OpenAPI document.
 * @typedef {{
 *   $ref?: string, type?: string, enum?: string[], anyOf?: Schema[], items?: Schema,
 *   minimum?: number, maximum?: number, maxLength?: number, maxItems?: number,
 *   description?: string, default?: unknown, example?: unknown,
 *   properties?: Record<string, Schema>, required?: string[],
 * }} Schema
 * @typedef {{name: string, in: string, required?: boolean, description?: string, schema: Schema}} Parameter
 * @typedef {{
 *   summary?: string, parameters?: Parameter[], responses: Record<string, unknown>,
 *   requestBody?: {content: Record<string, {schema: Schema}>},
 * }} Operation
 * @typedef {{
 *   paths: Record<string, Record<string, Operation>>,
 *   components?: {schemas?: Record<string, Schema>},
 * }} OpenApi
 */

async function main() {
  const url = ownService(location) ?? location.origin;
  const key = readKeys()[url] ?? "";
  const operations = find("#operations", HTMLElement);
  try {
    const openapi = await new ServiceClient(url, () => key).openapi();
    operations.replaceChildren(...sections(openapi, url));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    operations.replaceChildren(make("p", { class: "error" }, `The reference could not be read: ${reason}`));
  }
}

/** @param {OpenApi} openapi @param {string} url */
function sections(openapi, url) {
  return Object.entries(openapi.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) =>
      section({ openapi, address: `${url}${path}`, name: `${method.toUpperCase()} ${path}`, operation }),
    ),
  );
}

/** @param {{openapi: OpenApi, address: string, name: string, operation: Operation}} one */
function section({ openapi, address, name, operation }) {
  const body = bodyOf(openapi, operation);
  const rows = [
    ...(operation.parameters ?? []).map((item) =>
      row(`${item.name} (${item.in})`, { description: item.description, ...item.schema }, item.required),
    ),
    ...Object.entries(body.properties ?? {}).map(([field, schema]) =>
      row(field, schema, body.required?.includes(field)),
    ),
  ];
  return make(
    "section",
    { class: "operation" },
    make("h2", {}, make("code", {}, name)),
    make("p", {}, operation.summary ?? ""),
    ...(rows.length ? [make("table", {}, make("tbody", {}, ...rows))] : []),
    ...(body.example ? [make("pre", {}, curl(address, body.example))] : []),
    make("p", { class: "hint" }, `Answers: ${Object.keys(operation.responses).join(", ")}`),
  );
}

/** The schema of the JSON body; the first one where several are taken. @param {OpenApi} openapi @param {Operation} operation */
function bodyOf(openapi, operation) {
  const schema = resolved(openapi, operation.requestBody?.content["application/json"]?.schema ?? {});
  const [first] = schema.anyOf ?? [];
  return first ? resolved(openapi, first) : schema;
}

/** @param {OpenApi} openapi @param {Schema} schema @returns {Schema} */
function resolved(openapi, schema) {
  return (schema.$ref && openapi.components?.schemas?.[nameOf(schema.$ref)]) || schema;
}

/** @param {string} reference */
function nameOf(reference) {
  return reference.split("/").at(-1) ?? reference;
}

/** @param {string} name @param {Schema} schema @param {boolean} [isRequired] */
function row(name, schema, isRequired = false) {
  const fallback = schema.default ?? null;
  return make(
    "tr",
    {},
    make("td", {}, make("code", {}, name), isRequired ? " (required)" : ""),
    make("td", {}, inWords(schema)),
    make("td", {}, schema.description ?? "", fallback === null ? "" : ` Default: ${JSON.stringify(fallback)}.`),
  );
}

/** @param {Schema} schema @returns {string} */
function inWords(schema) {
  if (schema.anyOf) {
    return schema.anyOf.map(inWords).join(" or ");
  }
  if (schema.$ref) {
    return nameOf(schema.$ref);
  }
  if (schema.enum) {
    return schema.enum.join(" | ");
  }
  const kind = schema.type === "array" ? `list of ${inWords(schema.items ?? {})}` : (schema.type ?? "any");
  const limits = [
    schema.minimum === undefined ? "" : `≥ ${schema.minimum}`,
    schema.maximum === undefined ? "" : `≤ ${schema.maximum}`,
    schema.maxLength === undefined ? "" : `length ≤ ${schema.maxLength}`,
    schema.maxItems === undefined ? "" : `at most ${schema.maxItems}`,
  ];
  return [kind, ...limits].filter(Boolean).join(", ");
}

/** @param {string} address @param {unknown} example */
function curl(address, example) {
  return `curl -s '${address}' -H 'Content-Type: application/json' -d '${JSON.stringify(example)}'`;
}

void main();
