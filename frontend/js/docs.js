/** The HTTP reference: /openapi.json as a page. */

import { Api } from "./api.js";
import { find, make } from "./dom.js";

const api = new Api(location.origin);

/** @param {any} document @param {any} schema @returns {any} */
function resolved(document, schema) {
  if (!schema?.$ref) return schema ?? {};
  return schema.$ref
    .slice(2)
    .split("/")
    .reduce((/** @type {any} */ place, /** @type {string} */ name) => place[name], document);
}

/** @param {any} schema @returns {string} */
function inWords(schema) {
  if (schema.anyOf) return schema.anyOf.map(inWords).join(" or ");
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.join(" | ");
  const limits = [
    ["minimum", "≥ "],
    ["maximum", "≤ "],
    ["maxLength", "length ≤ "],
    ["maxItems", "at most "],
  ].flatMap(([key, word]) => (schema[key] === undefined ? [] : [`${word}${schema[key]}`]));
  const kind = schema.type === "array" ? `list of ${inWords(schema.items)}` : schema.type;
  return [kind, ...limits].join(", ");
}

/** @param {string} name @param {any} schema @param {boolean} required @param {string} [description] */
function row(name, schema, required, description = schema.description ?? "") {
  const fallback = schema.default === undefined || schema.default === null ? "" : ` Default: ${JSON.stringify(schema.default)}.`;
  return make(
    "tr",
    {},
    make("td", {}, make("code", {}, name), required ? " *" : ""),
    make("td", {}, inWords(schema)),
    make("td", {}, description + fallback),
  );
}

/** @param {any} document @param {string} method @param {string} path @param {any} operation */
function section(document, method, path, operation) {
  const body = resolved(document, operation.requestBody?.content?.["application/json"]?.schema);
  const variants = body.anyOf ? resolved(document, body.anyOf[0]) : body;
  const rows = [
    ...(operation.parameters ?? []).map((/** @type {any} */ item) =>
      row(`${item.name} (${item.in})`, item.schema, item.required, item.description),
    ),
    ...Object.entries(variants.properties ?? {}).map(([name, schema]) =>
      row(name, schema, (variants.required ?? []).includes(name)),
    ),
  ];
  const answers = Object.keys(operation.responses).join(", ");
  const example = variants.example
    ? [make("pre", {}, `curl -s '${location.origin}${path}' -H 'Content-Type: application/json' -d '${JSON.stringify(variants.example)}'`)]
    : [];
  return make(
    "section",
    { className: "panel" },
    make("h2", {}, make("code", {}, `${method.toUpperCase()} ${path}`)),
    make("p", {}, operation.summary ?? ""),
    ...(rows.length ? [make("table", {}, make("tbody", {}, ...rows))] : []),
    ...example,
    make("p", { className: "quiet" }, `Answers: ${answers}`),
  );
}

const document_ = await api.get("/openapi.json");
find("operations", HTMLElement).replaceChildren(
  ...Object.entries(document_.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => section(document_, method, path, operation)),
  ),
);
