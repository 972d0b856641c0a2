import assert from "node:assert/strict";
import { test } from "node:test";

import { orderOf } from "../../../frontend/js/graph/request.js";
import { Builder, graphOf, wantedFrom } from "../../../frontend/js/graph/restore.js";
import { EXAMPLES, firstGraph } from "../../../frontend/js/graph/starters.js";
import { faultsOf } from "../../../frontend/js/graph/graph.js";
import { withTwin } from "../../../frontend/js/graph/compared.js";
import { samplersOf } from "../../../frontend/js/graph/plan.js";

const REQUEST = {
  prompt: "a red ball",
  negative_prompt: "a house",
  model: "embedded",
  backend: "flux",
  width: 128,
  height: 256,
  num_inference_steps: 3,
  guidance_scale: 0,
  true_cfg_scale: 2.5,
  seed: 7,
  num_images: 2,
  output_format: "webp",
  loras: [
    { name: "sketch", weight: 0.8, trigger_word: "sketchy" },
    { name: "neon", weight: -0.5 },
  ],
};

const boxOf = () => ({ x: 0, y: 0, width: 300, height: 200 });

function only(graph) {
  const [sampler, ...others] = samplersOf(graph);
  assert.deepEqual(others, []);
  return orderOf(graph, sampler.id);
}

test("a request becomes a graph whose request it is", () => {
  const order = only(graphOf(wantedFrom(REQUEST), "fp4"));
  assert.deepEqual(order.body, REQUEST);
  assert.equal(order.service, "fp4");
  assert.deepEqual(order.faults, []);
});

test("what is left open is not sent", () => {
  assert.deepEqual(only(graphOf({ prompt: "a fish" }, "bf16")).body, { prompt: "a fish", loras: [] });
});

test("a random seed is not sent, though one is remembered", () => {
  const graph = graphOf({ prompt: "a fish", seed: 7 }, "bf16");
  const sampler = samplersOf(graph)[0];
  const random = { ...graph, nodes: { ...graph.nodes, [sampler.id]: { ...sampler, values: { ...sampler.values, seed_mode: "random" } } } };
  assert.equal("seed" in only(random).body, false);
});

test("an empty prompt and missing wires are told at their nodes", () => {
  assert.deepEqual(only(firstGraph("bf16")).faults.map(({ node, field }) => [node, field]), [["n2", "prompt"]]);
  const builder = new Builder();
  const sampler = builder.node("sampler", 0, 0);
  assert.deepEqual(orderOf(builder.graph, sampler).faults.map(({ field }) => field), ["model", "prompt"]);
});

test("a LoRA node without a file is told at the node, and nine LoRAs are too many", () => {
  const graph = graphOf({ prompt: "a fish", loras: Array.from({ length: 9 }, (_, i) => ({ name: `l${i}` })) }, "bf16");
  assert.match(only(graph).faults[0].message, /takes 8 LoRAs; 9 are wired/);
  const builder = new Builder(graphOf({ prompt: "a fish" }, "bf16"));
  const lora = builder.node("lora", 0, 0);
  builder.wire(`${lora}.lora`, "n1.loras");
  assert.deepEqual(only(builder.graph).faults.map(({ node }) => node), [lora]);
});

test("pictures are parts to be put in, with the strength of their node", () => {
  const order = only(graphOf({ prompt: "a fish", image: "asset:1", strength: 0.3 }, "bf16"));
  assert.deepEqual(order.parts, [{ field: "image", source: "asset:1", sampler: null }]);
  assert.equal(order.body.strength, 0.3);
});

test("values of a strange request are left out, not guessed", () => {
  const wanted = wantedFrom({ prompt: 3, width: "wide", seed: 7, loras: [{ weight: 1 }, null, { name: "a", trigger_words: ["b"] }] });
  assert.deepEqual(wanted, { seed: 7, loras: [{ name: "a", weight: 1, trigger_word: "b" }] });
});

test("the examples are whole graphs that could run", () => {
  for (const { build } of EXAMPLES) {
    const graph = build("bf16");
    assert.deepEqual(faultsOf(graph), []);
    for (const { id } of samplersOf(graph)) {
      assert.deepEqual(orderOf(graph, id).faults, []);
    }
  }
});

test("a twin differs in the service alone and is used again", () => {
  const graph = graphOf({ ...wantedFrom(REQUEST), num_images: 1 }, "bf16");
  const [sampler] = samplersOf(graph);
  const twin = withTwin(graph, sampler.id, 99, boxOf);
  assert.deepEqual(faultsOf(twin.graph), []);
  const [mine, other] = twin.samplers.map((id) => orderOf(twin.graph, id));
  assert.deepEqual(mine.body, other.body);
  assert.deepEqual([mine.service, other.service], ["bf16", "fp4"]);
  const again = withTwin(twin.graph, sampler.id, 5, boxOf);
  assert.deepEqual(again.graph, twin.graph);
});

test("a sampler with a random seed and its twin get one seed", () => {
  const twin = withTwin(graphOf({ prompt: "a fish" }, "fp4"), "n3", 99, boxOf);
  assert.deepEqual(twin.samplers.map((id) => orderOf(twin.graph, id).body.seed), [99, 99]);
});
