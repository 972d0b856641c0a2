/** What functions of js/graph/ take and return, where that is too long to stand beside them. */

/** js/graph/table.js */
declare namespace TableFn {
	type initialValues = (kind: NodeKind) => Record<string, Value>;
}

/** js/graph/graph.js */
declare namespace GraphFn {
	type newNode = (id: string, kind: NodeKind, place: Point, values?: Record<string, Value>) => GraphNode;
	type freeIds = (graph: Graph, part: "nodes" | "wires") => () => string;
	type endOf = (/** "n1.model" */ text: string) => End;
	type wiresAt = (graph: Graph, end: "to" | "from", node: string, socket?: string) => Wire[];
	type wiresInto = (graph: Graph, node: string, socket?: string) => Wire[];
	type wiresOutOf = (graph: Graph, node: string, socket?: string) => Wire[];
	type sourcesOf = (graph: Graph, node: string, socket: string) => GraphNode[];
	type sourceOf = (graph: Graph, node: string, socket: string) => GraphNode | null;
	type typeAt = (graph: Graph, end: End, side: Way) => SocketType | null;
	type whyNoWire = (graph: Graph, from: End, to: End) => string;
	type leadsTo = (graph: Graph, start: string, end: string) => boolean;
	type byAge = (a: {id: string}, b: {id: string}) => number;
}

/** js/graph/commands.js */
declare namespace CommandsFn {
	type joined = (first: Command, second: Command) => Command;
	type together = (label: string, graph: Graph, makers: readonly ((graph: Graph) => Command | null)[]) => Command | null;
	type moveNodes = (graph: Graph, places: Readonly<Record<string, Point>>, series?: string) => Command | null;
	type setValues = (graph: Graph, id: string, values: Readonly<Record<string, Value>>, series?: string) => Command | null;
	type paste = (graph: Graph, fragment: Fragment, by: Point, label?: string) => {command: Command; ids: string[]} | null;
	type align = (graph: Graph, ids: readonly string[], how: "left" | "top" | "row" | "column", boxOf: (id: string) => Box) => Command | null;
	type changeNodes = (graph: Graph, ids: readonly string[], label: string, change: (node: GraphNode) => GraphNode, series?: string) => Command | null;
	type applied = (graph: Graph, changes: readonly Change[], side: "before" | "after") => Graph;
}

/** js/graph/history.js */
declare namespace HistoryFn {
	type perform = (document: Doc, command: Command | null, /** whether it may be joined with the last one, when both are of one series */ goesOn?: boolean) => Doc;
}

/** js/graph/restore.js */
declare namespace RestoreFn {
	type add = (kind: NodeKind, values: Record<string, Value>, output: string, input: string, height: number) => string;
	type graphOf = (wanted: Wanted, service: string) => Graph;
}

/** js/graph/plan.js */
declare namespace PlanFn {
	type planOf = (graph: Graph, samplerId: string) => Plan | null;
	type mainSampler = (graph: Graph, wanted?: string | null) => GraphNode | null;
	type originOf = (graph: Graph, nodeId: string, socket: string) => GraphNode | null;
}

/** js/graph/request.js */
declare namespace RequestFn {
	type fault = (node: string, field: string, message: string) => number;
	type orderOf = (graph: Graph, samplerId: string) => Order | null;
	type partsOf = (graph: Graph, samplerId: string, fault: (node: string, field: string, message: string) => void) => Part[];
	type samplerValues = (sampler: GraphNode) => Partial<GenerateBody>;
}

/** js/graph/layout.js */
declare namespace LayoutFn {
	type arranged = (graph: Graph, sizeOf: (id: string) => {width: number, height: number}) => Record<string, Point>;
	type around = (boxes: readonly Box[]) => Box | null;
}

/** js/graph/picture_texts.js */
declare namespace PictureTextsFn {
	type pictureTexts = (data: ArrayBuffer) => Promise<Record<string, string>>;
	type exifTexts = (tiff: Uint8Array<ArrayBuffer> | null) => Record<string, string>;
}

/** js/graph/infotext.js */
declare namespace InfotextFn {
	type fromInfotext = (text: string) => Wanted | null; // null when it is no such text
}

/** js/graph/difference.js */
declare namespace DifferenceFn {
	type weighted = (
		values: Float64Array,
		/** of the result */ width: number,
		height: number,
		/** of a row */ stride: number,
		step: number
	) => Float64Array;
}
