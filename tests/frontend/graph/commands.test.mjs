import assert from "node:assert/strict";
import { test } from "node:test";

import * as commands from "../../../frontend/js/graph/commands.js";
import { leadsTo, sourcesOf, whyNoWire, wiresInto } from "../../../frontend/js/graph/graph.js";
import { arranged } from "../../../frontend/js/graph/layout.js";
import { Builder } from "../../../frontend/js/graph/restore.js";
import { firstGraph } from "../../../frontend/js/graph/starters.js";

const graph = firstGraph("bf16"); // n1 model, n2 prompt, n3 sampler, n4 image
const end = (node, socket) => ({ node, socket });

test("a wire fits sockets of one type only", () => {
  assert.match(whyNoWire(graph, end("n2", "text"), end("n3", "model")), /text does not fit an input for model/);
  assert.equal(whyNoWire(graph, end("n2", "text"), end("n3", "negative")), "");
  assert.match(whyNoWire(graph, end("n2", "text"), end("n3", "nothing")), /no such socket/);
});

test("a wire cannot lead back to where it starts", () => {
  assert.ok(leadsTo(graph, "n1", "n4"));
  assert.match(whyNoWire(graph, end("n4", "image"), end("n3", "image")), /lead back/);
  assert.equal(commands.connect(graph, end("n3", "image"), end("n3", "image")), null);
});

test("a new wire takes the place of the one an input for one has", () => {
  const builder = new Builder(graph);
  const other = builder.node("prompt", 0, 0);
  const command = commands.connect(builder.graph, end(other, "text"), end("n3", "prompt"));
  const after = commands.execute(builder.graph, command);
  assert.deepEqual(wiresInto(after, "n3", "prompt").map(({ from }) => from.node), [other]);
  assert.deepEqual(commands.revert(after, command), builder.graph);
});

test("an input for many keeps its wires in order", () => {
  let after = graph;
  const builder = new Builder(graph);
  const ids = [builder.node("lora", 0, 0), builder.node("lora", 0, 0), builder.node("lora", 0, 0)];
  after = builder.graph;
  for (const id of ids) {
    after = commands.execute(after, commands.connect(after, end(id, "lora"), end("n1", "loras")));
  }
  assert.deepEqual(sourcesOf(after, "n1", "loras").map(({ id }) => id), ids);
  assert.equal(commands.connect(after, end(ids[0], "lora"), end("n1", "loras")), null);
});

test("deleting a node takes its wires with it", () => {
  const after = commands.execute(graph, commands.removeNodes(graph, ["n3"]));
  assert.deepEqual(Object.keys(after.wires), []);
  assert.deepEqual(Object.keys(after.nodes), ["n1", "n2", "n4"]);
});

test("a paste has new ids and the wires between its nodes", () => {
  const pasted = commands.paste(graph, commands.copy(graph, ["n2", "n3"]), { x: 10, y: 20 });
  const after = commands.execute(graph, pasted.command);
  assert.deepEqual(pasted.ids, ["n5", "n6"]);
  assert.deepEqual(sourcesOf(after, "n6", "prompt").map(({ id }) => id), ["n5"]);
  assert.equal(after.nodes.n6.x, graph.nodes.n3.x + 10);
});

test("a duplicate keeps what leads into it", () => {
  const { command, ids } = commands.duplicate(graph, ["n3"], { x: 0, y: 500 });
  const after = commands.execute(graph, command);
  assert.deepEqual(sourcesOf(after, ids[0], "model").map(({ id }) => id), ["n1"]);
});

test("a value of the wrong type is an error that names it", () => {
  assert.throws(() => commands.setValues(graph, "n3", { width: "wide" }), /n3\.width is no number/);
  assert.throws(() => commands.setValues(graph, "n3", { breadth: 1 }), /n3\.breadth is no value of this node/);
  assert.throws(() => commands.setValues(graph, "n1", { service: "fp8" }), /is none of fp4, bf16/);
});

test("setting what is there already is no edit", () => {
  assert.equal(commands.setValues(graph, "n3", { num_images: 1 }), null);
  assert.equal(commands.moveNodes(graph, { n1: { x: graph.nodes.n1.x, y: graph.nodes.n1.y } }), null);
});

test("commands that belong together are one step", () => {
  const command = commands.together("both", graph, [
    (now) => commands.setValues(now, "n2", { text: "a fish" }),
    (now) => commands.removeNodes(now, ["n4"]),
    (now) => commands.removeNodes(now, ["n4"]),
  ]);
  const after = commands.execute(graph, command);
  assert.equal(after.nodes.n2.values.text, "a fish");
  assert.equal(after.nodes.n4, undefined);
  assert.deepEqual(commands.revert(after, command), graph);
});

test("align puts nodes into a row without overlap", () => {
  const boxOf = (id) => ({ x: graph.nodes[id].x, y: graph.nodes[id].y, width: 300, height: 100 });
  const after = commands.execute(graph, commands.align(graph, ["n1", "n2", "n3"], "row", boxOf));
  const row = ["n1", "n2", "n3"].map((id) => after.nodes[id]).sort((a, b) => a.x - b.x);
  assert.equal(new Set(row.map(({ y }) => y)).size, 1);
  assert.ok(row[1].x >= row[0].x + 300 && row[2].x >= row[1].x + 300);
});

test("an arranged graph runs from left to right", () => {
  const places = arranged(graph, () => ({ width: 200, height: 100 }));
  for (const { from, to } of Object.values(graph.wires)) {
    assert.ok(places[from.node].x + 200 < places[to.node].x);
  }
  assert.notEqual(places.n1.y, places.n2.y);
});
