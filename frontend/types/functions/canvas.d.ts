/** What functions of js/canvas/ take and return, where that is too long to stand beside them. */

declare namespace Fn {
	/* js/canvas/canvas.js */
	type boxOf = (id: string) => Box;
	type canvasTool = (label: string, icon: string, act: () => void) => HTMLButtonElement;
	type mountCanvas = (app: App) => Canvas;

	/* js/canvas/frame.js */
	type frameOf = (app: App, node: GraphNode) => HTMLElement;
	type socketButton = (socket: Socket, side: Way) => HTMLButtonElement;
	type updateFrame = (app: App, element: HTMLElement, node: GraphNode) => void;

	/* js/canvas/geometry.js */
	type anchorAt = (graph: Graph, end: End, side: Way) => Point;
	/** All of a box in view, not larger than it is made for, and none of it below the tools. */
	type fitted = (box: Box, room: Extent, /** how high they are */ tools?: number) => Camera;
	type onScreen = (box: Box, camera: Camera) => Box; // on the canvas element
	type overlap = (a: Box, b: Box) => boolean;
	type pathBetween = (from: Point, to: Point) => string; // the path of a wire
	type toWorld = (camera: Camera, /** of the canvas element */ point: Point) => Point;
	/** The place under the pointer stays under it. */
	type zoomed = (camera: Camera, point: Point, factor: number) => Camera;

	/* js/canvas/gestures.js */
	type begin = (event: PointerEvent, target: Element, point: Point) => Gesture | null;
	type boxBetween = (a: Point, b: Point) => Box;
	type distance = (a: Point, b: Point) => number;
	type dragNodes = (id: string, start: Point, event: PointerEvent) => Gesture;
	/** A wire by one end. One that is in an input already is taken out of it. */
	type dragWire = (socket: SocketEnd, start: Point) => Gesture;
	type drawBox = (start: Point, event: PointerEvent) => Gesture;
	type gesturesAt = (event: {clientX: number, clientY: number}) => Point;
	type markFitting = (fixed: SocketEnd | null, type: SocketType) => void;
	type middle = (a: Point, b: Point) => { x: number; y: number; };
	type mountGestures = (options: CanvasParts & {wires: Wires, lasso: HTMLElement}) => void;
	type ordered = <T>(other: T) => [T | End, T | End]; // from, to
	type pan = (start: Point, onClick?: () => void) => Gesture;
	type searchAt = (event: MouseEvent, end?: SocketEnd & {type: SocketType}) => void;
	type socketAt = (target: Element) => SocketEnd | null;
	/** The end under the pointer that a wire fits: the socket, or the first one of the node that does. */
	type targetAt = (event: PointerEvent, fixed: SocketEnd, type: SocketType) => End | null;

	/* js/canvas/menu.js */
	type menuRow = (item: MenuItem, index: number) => HTMLLIElement;

	/* js/canvas/menus.js */
	/** Everything a socket can be wired to, and its wires to cut. */
	type openConnect = (app: App, socket: SocketEnd & {type: SocketType}, at: Point, place: Point) => void;
	type openNodeMenu = (app: App, options: {at: Point, boxOf: (id: string) => Box}) => void;
	/** Search for a node to add; with `end` only those that fit, and wired at once. */
	type openSearch = (app: App, options: {at: Point, place: Point, end?: SocketEnd & {type: SocketType}}) => void;

	/* js/canvas/minimap.js */
	type mountMinimap = (options: CanvasParts & {canvas: HTMLCanvasElement}) => () => void; // draws it

	/* js/canvas/rest.js */
	type mountRest = (options: {root: HTMLElement, layer: HTMLElement, app: App, boxOf: (id: string) => Box, isZoomed: () => boolean}) => () => void; // call it when the view or the nodes have changed
	type whole = (/** of all nodes */ count: number) => (node: HTMLElement) => boolean;

	/* js/canvas/wires.js */
	type drawLoose = (loose: {from: Point, to: Point, type: string} | null) => void;
	type wiresAdd = (wire: Wire) => { group: SVGGElement; paths: SVGPathElement[]; seen: string; };
	type wiresDraw = (graph: Graph, selected: string | null) => void;
}
