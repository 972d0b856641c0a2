/** What functions of js/canvas/ take and return, where that is too long to stand beside them. */

/** js/canvas/geometry.js */
declare namespace GeometryFn {
	type anchorAt = (graph: Graph, end: End, side: Way) => Point;
	type pathBetween = (from: Point, to: Point) => string; // the path of a wire
	type toWorld = (camera: Camera, /** of the canvas element */ point: Point) => Point;
	type onScreen = (box: Box, camera: Camera) => Box; // on the canvas element
	type zoomed = (camera: Camera, point: Point, factor: number) => Camera;
	type fitted = (box: Box, room: Extent, /** how high they are */ tools?: number) => Camera;
}

/** js/canvas/frame.js */
declare namespace FrameFn {
	type updateFrame = (app: App, element: HTMLElement, node: GraphNode) => void;
}

/** js/canvas/menu.js */
declare namespace MenuFn {
	type row = (item: MenuItem, index: number) => HTMLLIElement;
}

/** js/canvas/menus.js */
declare namespace MenusFn {
	type openSearch = (app: App, options: {at: Point, place: Point, end?: SocketEnd & {type: SocketType}}) => void;
	type openConnect = (app: App, socket: SocketEnd & {type: SocketType}, at: Point, place: Point) => void;
	type openNodeMenu = (app: App, options: {at: Point, boxOf: (id: string) => Box}) => void;
}

/** js/canvas/gestures.js */
declare namespace GesturesFn {
	type at = (event: {clientX: number, clientY: number}) => Point;
	type searchAt = (event: MouseEvent, end?: SocketEnd & {type: SocketType}) => void;
	type begin = (event: PointerEvent, target: Element, point: Point) => Gesture | null;
	type pan = (start: Point, onClick?: () => void) => Gesture;
	type dragNodes = (id: string, start: Point, event: PointerEvent) => Gesture;
	type drawBox = (start: Point, event: PointerEvent) => Gesture;
	type dragWire = (socket: SocketEnd, start: Point) => Gesture;
	type targetAt = (event: PointerEvent, fixed: SocketEnd, type: SocketType) => End | null;
	type markFitting = (fixed: SocketEnd | null, type: SocketType) => void;
	type mountGestures = (options: CanvasParts & {wires: Wires, lasso: HTMLElement}) => void;
}

/** js/canvas/minimap.js */
declare namespace MinimapFn {
	type mountMinimap = (options: CanvasParts & {canvas: HTMLCanvasElement}) => () => void; // draws it
}

/** js/canvas/rest.js */
declare namespace RestFn {
	type isWhole = (node: HTMLElement, /** of all nodes */ count: number) => boolean;
	type mountRest = (options: {root: HTMLElement, layer: HTMLElement, app: App, boxOf: (id: string) => Box, isZoomed: () => boolean}) => () => void; // call it when the view or the nodes have changed
}

/** js/canvas/wires.js */
declare namespace WiresFn {
	type draw = (graph: Graph, selected: string | null) => void;
	type drawLoose = (loose: {from: Point, to: Point, type: string} | null) => void;
}

/** js/canvas/canvas.js */
declare namespace CanvasFn {
	type tool = (label: string, icon: string, act: () => void) => HTMLButtonElement;
}
