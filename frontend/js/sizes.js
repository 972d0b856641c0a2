/** Picture sizes that a model takes. */

/** @type {Readonly<Record<string, [number, number]>>} */
const SHAPES = {Square: [1, 1], Landscape: [4, 3], Portrait: [3, 4], Wide: [16, 9], Tall: [9, 16]};

/** @type {Fn.presets} */
export function presets({defaults, limits: {min_size, max_size, size_multiple}}) {
	const nearest = (/** @type {number} */ px) => Math.min(Math.max(Math.round(px / size_multiple) * size_multiple, min_size), max_size);
	const shapes = Object.entries(SHAPES).map(([name, [across, down]]) => {
		const unit = Math.min(Math.sqrt((defaults.width * defaults.height) / (across * down)), max_size / Math.max(across, down));
		return {name, width: nearest(unit * across), height: nearest(unit * down)};
	});
	return [...shapes, {name: "Large", width: max_size, height: max_size}];
}
