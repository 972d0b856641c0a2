/** The parts that views are given. */

import type { Connection } from "../js/connection.js";
import type { Editor } from "../js/editor.js";
import type { Gallery } from "../js/gallery.js";
import type { Library } from "../js/library.js";
import type { Opener } from "../js/opener.js";
import type { Runs } from "../js/runs.js";
import type { Store, Values } from "../js/store.js";
import type { GraphNode, Value } from "./graph";
import type { Camera, ServiceName, State } from "./state";

export interface App {
  store: Store;
  camera: Values<{ camera: Camera }>;
  connections: Readonly<Partial<Record<ServiceName, Connection>>>;
  editor: Editor;
  gallery: Gallery;
  library: Library;
  opener: Opener;
  runs: Runs;
}

/** What the view of one node is given. It ends when the node or its place goes. */
export interface NodeContext {
  app: App;
  id: string;
  place: "canvas" | "form";
  /** The node as it is now. */
  node: () => GraphNode;
  set: (values: Record<string, Value>) => void;
  /** Like `Store.watch`, for as long as the view lives. */
  watch: <T extends unknown[]>(select: (state: State) => [...T], react: (...values: NoInfer<T>) => void) => void;
}

/** How a type of node looks: fills the body, returns nothing. */
export type MountNode = (body: HTMLElement, context: NodeContext) => void;
