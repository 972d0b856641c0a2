/** Random edits of a graph, from a seeded generator, so that a failure can be repeated. */

import * as commands from "../../../frontend/js/graph/commands.js";
import { freeIds, newNode, nodesOf, wiresOf } from "../../../frontend/js/graph/graph.js";
import { NODE_KINDS, NODE_TYPES } from "../../../frontend/js/graph/table.js";

/** Mulberry32: numbers in [0, 1) that follow from the seed. */
export function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A command that fits the graph, or null where the drawn one has nothing to do. */
export function randomCommand(graph, random) {
  const pick = (list) => list[Math.floor(random() * list.length)];
  const nodes = nodesOf(graph);
  const some = () => nodes.filter(() => random() < 0.3).map(({ id }) => id);
  const place = () => ({ x: random() * 4000 - 2000, y: random() * 4000 - 2000 });
  const boxOf = (id) => ({ x: graph.nodes[id].x, y: graph.nodes[id].y, width: 200, height: 100 });
  const edits = [
    () => commands.addNode(newNode(freeIds(graph, "nodes")(), pick(NODE_KINDS), place())),
    () => commands.addNode(newNode(freeIds(graph, "nodes")(), pick(NODE_KINDS), place())),
    () => nodes.length && commands.removeNodes(graph, [pick(nodes).id]),
    () => random() < 0.1 && commands.removeNodes(graph, some()),
    () => commands.moveNodes(graph, Object.fromEntries(some().map((id) => [id, place()])), "drag"),
    () => nodes.length && randomValue(graph, pick(nodes), random),
    () => nodes.length && commands.collapse(graph, some(), random() < 0.5),
    () => randomWire(graph, nodes, pick),
    () => randomWire(graph, nodes, pick),
    () => randomWire(graph, nodes, pick),
    () => wiresOf(graph).length && commands.disconnect(graph, [pick(wiresOf(graph)).id]),
    () => nodes.length < 60 && commands.paste(graph, commands.copy(graph, some()), place())?.command,
    () => nodes.length < 60 && commands.duplicate(graph, some(), { x: 40, y: 40 })?.command,
    () => nodes.length && commands.align(graph, some(), pick(["left", "top", "row", "column"]), boxOf),
    () => random() < 0.02 && commands.replaceAll(graph, { nodes: {}, wires: {} }, "clear"),
  ];
  return pick(edits)() || null;
}

function randomWire(graph, nodes, pick) {
  if (!nodes.length) {
    return null;
  }
  const [from, to] = [pick(nodes), pick(nodes)];
  const output = pick(NODE_TYPES[from.kind].outputs);
  const input = pick(NODE_TYPES[to.kind].inputs);
  return output && input
    ? commands.connect(graph, { node: from.id, socket: output.name }, { node: to.id, socket: input.name })
    : null;
}

function randomValue(graph, node, random) {
  const names = Object.keys(NODE_TYPES[node.kind].values);
  const name = names[Math.floor(random() * names.length)];
  if (!name) {
    return null;
  }
  const spec = NODE_TYPES[node.kind].values[name];
  const values = {
    text: () => "word ".repeat(random() * 4),
    number: () => (random() < 0.2 ? null : Math.round(random() * 100) / 10),
    choice: () => spec.choices[Math.floor(random() * spec.choices.length)],
    name: () => (random() < 0.3 ? null : `file ${Math.floor(random() * 9)}`),
    names: () => ["a", "b", "c"].filter(() => random() < 0.5),
  };
  return commands.setValues(graph, node.id, { [name]: values[spec.kind]() }, random() < 0.5 ? `${node.id} ${name}` : "");
}
