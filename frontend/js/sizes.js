/** Picture sizes that a model takes. */

/** @import { Model } from "../types/api" */

/** @typedef {{name: string, width: number, height: number}} Size */

const SHAPES = [
  { name: "Square", across: 1, down: 1 },
  { name: "Landscape", across: 4, down: 3 },
  { name: "Portrait", across: 3, down: 4 },
  { name: "Wide", across: 16, down: 9 },
  { name: "Tall", across: 9, down: 16 },
];

/**
 * One size for each shape, of about the area of the model's default, within its limits; and the largest square.
 * @param {Model} model
 * @returns {Size[]}
 */
export function presets({ defaults, limits }) {
  const area = defaults.width * defaults.height;
  const shapes = SHAPES.map(({ name, across, down }) => {
    const unit = Math.sqrt(area / (across * down));
    const fit = Math.min(1, limits.max_size / (unit * Math.max(across, down)));
    return {
      name,
      width: nearest(unit * fit * across, limits),
      height: nearest(unit * fit * down, limits),
    };
  });
  return [...shapes, { name: "Large", width: limits.max_size, height: limits.max_size }];
}

/**
 * @param {number} px
 * @param {Model["limits"]} limits
 */
function nearest(px, { min_size, max_size, size_multiple }) {
  const rounded = Math.round(px / size_multiple) * size_multiple;
  return Math.min(Math.max(rounded, min_size), max_size);
}
