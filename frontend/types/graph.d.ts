/** The graph: plain data, replaced and never changed in place. */

/** What flows through a wire. */
export type SocketType = "model" | "lora" | "text" | "image" | "mask" | "reference";

/** What a node holds. null: left to the model, or nothing there yet. */
export type Value = string | number | boolean | null | readonly string[];

export type NodeKind =
  | "model"
  | "lora"
  | "prompt"
  | "negative"
  | "image-input"
  | "mask"
  | "references"
  | "sampler"
  | "image"
  | "compare"
  | "note";

export interface GraphNode {
  id: string;
  kind: NodeKind;
  /** Its upper left corner, px of the canvas at scale 1. */
  x: number;
  y: number;
  collapsed: boolean;
  values: Readonly<Record<string, Value>>;
}

export interface End {
  node: string;
  socket: string;
}

export interface Wire {
  id: string;
  /** An output. */
  from: End;
  /** An input. */
  to: End;
}

export interface Graph {
  nodes: Readonly<Record<string, GraphNode>>;
  wires: Readonly<Record<string, Wire>>;
}

export interface Socket {
  name: string;
  type: SocketType;
  label: string;
  /** An input that takes several wires. */
  many?: boolean;
  /** An input without which nothing can be drawn. */
  needed?: boolean;
}

export type ValueSpec =
  | { kind: "text"; initial: string; longest: number }
  | { kind: "number"; initial: number | null; least: number; most: number; step: number; whole: boolean }
  | { kind: "choice"; initial: string; choices: readonly string[] }
  | { kind: "name"; initial: string | null }
  | { kind: "names"; initial: readonly string[]; most: number };

export interface NodeType {
  title: string;
  about: string;
  width: number;
  inputs: readonly Socket[];
  outputs: readonly Socket[];
  values: Readonly<Record<string, ValueSpec>>;
}

/** One thing that an edit replaces. null: it is not there. */
export type Change =
  | { part: "node"; id: string; before: GraphNode | null; after: GraphNode | null }
  | { part: "wire"; id: string; before: Wire | null; after: Wire | null };

/** An edit of the graph. Commands of one `series` that follow each other are undone together. */
export interface Command {
  label: string;
  changes: readonly Change[];
  series: string;
}

export interface History {
  done: readonly Command[];
  undone: readonly Command[];
}

export interface Document {
  graph: Graph;
  history: History;
}

/** Nodes and the wires between them, to be put into a graph under new ids. */
export interface Fragment {
  nodes: readonly GraphNode[];
  wires: readonly Wire[];
}

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}
