import assert from "node:assert/strict";
import { test } from "node:test";

import { faultsOf } from "../../../frontend/js/graph/graph.js";
import { newDocument, perform, redo, undo } from "../../../frontend/js/graph/history.js";
import { setValues } from "../../../frontend/js/graph/commands.js";
import { firstGraph } from "../../../frontend/js/graph/starters.js";
import { generator, randomCommand } from "./random_edits.mjs";

const EDITS = 1000;

for (const seed of [1, 2, 3]) {
  test(`a thousand random edits undone one by one equal the start (seed ${seed})`, () => {
    const random = generator(seed);
    const start = firstGraph("bf16");
    let document = newDocument(start);
    const states = [document.graph];
    while (document.history.done.length < EDITS) {
      document = perform(document, randomCommand(document.graph, random));
      if (document.history.done.length === states.length) {
        assert.deepEqual(faultsOf(document.graph), []);
        states.push(document.graph);
      }
    }
    const last = document.graph;
    for (let index = EDITS - 1; index >= 0; index--) {
      document = undo(document);
      assert.deepEqual(document.graph, states[index]);
    }
    assert.deepEqual(document.graph, start);
    for (let index = 0; index < EDITS; index++) {
      document = redo(document);
    }
    assert.deepEqual(document.graph, last);
  });

  test(`edits of one series are undone together and exactly (seed ${seed})`, () => {
    const random = generator(seed);
    const start = firstGraph("bf16");
    let document = newDocument(start);
    for (let index = 0; index < EDITS; index++) {
      document = perform(document, randomCommand(document.graph, random), true);
    }
    while (document.history.done.length) {
      document = undo(document);
    }
    assert.deepEqual(document.graph, start);
  });
}

test("typing is one step of undo, and a pause begins another", () => {
  let document = newDocument(firstGraph("bf16"));
  const type = (text, goesOn) => {
    document = perform(document, setValues(document.graph, "n2", { text }, "n2 text"), goesOn);
  };
  type("a", false);
  type("a r", true);
  type("a red", true);
  type("a red ball", false);
  assert.equal(document.history.done.length, 2);
  assert.equal(undo(document).graph.nodes.n2.values.text, "a red");
  assert.equal(undo(undo(document)).graph.nodes.n2.values.text, "");
});

test("an edit after an undo forgets what was undone", () => {
  let document = newDocument(firstGraph("bf16"));
  document = perform(document, setValues(document.graph, "n2", { text: "one" }));
  document = undo(document);
  document = perform(document, setValues(document.graph, "n2", { text: "two" }));
  assert.equal(redo(document).graph.nodes.n2.values.text, "two");
  assert.equal(undo(document).graph.nodes.n2.values.text, "");
});

test("to undo and to redo where there is nothing changes nothing", () => {
  const document = newDocument(firstGraph("bf16"));
  assert.deepEqual(undo(document), document);
  assert.deepEqual(redo(document), document);
});
