/** Drawings on a field of 20 by 20: lines, and after a bar what is filled. */

/** A rectangle with round corners. @type {Fn.box} */
const box = (x, y, w, h = w, r = 1.5) =>
	`M${x + r} ${y}h${w - 2 * r}a${r} ${r} 0 0 1 ${r} ${r}v${h - 2 * r}a${r} ${r} 0 0 1-${r} ${r}h-${w - 2 * r}a${r} ${r} 0 0 1-${r}-${r}v-${h - 2 * r}a${r} ${r} 0 0 1 ${r}-${r}z`;
/** @type {Fn.ring} */
const ring = (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0-${2 * r} 0z`;

/** @type {Readonly<Record<string, string>>} */
export const ICONS = {
	run: "|M6 4v12l10-6z",
	stop: `|${box(5, 5, 10)}`,
	pause: "M7 4.5v11M13 4.5v11",
	compare: `${box(2.5, 4, 15, 12, 2)}M10 2.5v15|M10 4h5.5a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H10z`,
	download: "M10 3v9m-4-4 4 4 4-4M4 16h12",
	upload: "M10 12V3M6 7l4-4 4 4M4 16h12",
	seed: `${box(3.5, 3.5, 13, 13, 3)}M7 7h.01M13 7h.01M10 10h.01M7 13h.01M13 13h.01`,
	settings: `M3 6h8m4 0h2M3 14h2m4 0h8${ring(13, 6, 2)}${ring(7, 14, 2)}`,
	copy: `${box(7, 7, 9.5, 9.5, 2)}M13 4.5A1.5 1.5 0 0 0 11.5 3.5h-6a2 2 0 0 0-2 2v6A1.5 1.5 0 0 0 4.5 13`,
	pin: "M7 3h6l-1 5.5 3 3H5l3-3zM10 11.5V17",
	delete: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
	close: "m5 5 10 10M15 5 5 15",
	previous: "m12.5 4-6 6 6 6",
	next: "m7.5 4 6 6-6 6",
	swap: "M4 7h11m-3-3 3 3-3 3M16 13H5m3-3-3 3 3 3",
	plus: "M10 4v12M4 10h12",
	minus: "M4 10h12",
	zoom: `${ring(9, 9, 5.5)}M13 13l4 4M9 6.5v5M6.5 9h5`,
	fit: `M3 7V4.5A1.5 1.5 0 0 1 4.5 3H7M13 3h2.5A1.5 1.5 0 0 1 17 4.5V7M17 13v2.5a1.5 1.5 0 0 1-1.5 1.5H13M7 17H4.5A1.5 1.5 0 0 1 3 15.5V13${box(6.5, 7.5, 7, 5, 1)}`,
	arrange: `${box(2.5, 3, 5, 5, 1)}${box(2.5, 12, 5, 5, 1)}${box(12.5, 7.5, 5, 5, 1)}M7.5 5.5c3 0 2 4.5 5 4.5M7.5 14.5c3 0 2-4.5 5-4.5`,
	undo: "M4 8h8a4.5 4.5 0 0 1 0 9H8M7.5 4 3.5 8l4 4",
	redo: "M16 8H8a4.5 4.5 0 0 0 0 9h4M12.5 4l4 4-4 4",
	fold: "m6 8 4 4 4-4",
	expand: "M11.5 3H17v5.5M8.5 17H3v-5.5M17 3l-6 6M3 17l6-6",
	image: `${box(3, 4, 14, 12, 2)}${ring(7.5, 8, 1.3)}M4 15l4.5-4 3 2.5L14 11l3 3`,
	gallery: [box(3, 3, 6), box(11, 3, 6), box(3, 11, 6), box(11, 11, 6)].join(""),
	loras: "m10 3 7 3.5-7 3.5-7-3.5zM3 10l7 3.5 7-3.5M3 13.5 10 17l7-3.5",
	queue: "M4 5h12M4 10h12M4 15h7",
	machine: `${box(5, 5, 10, 10, 2)}M8 2.5V5m4-2.5V5M8 15v2.5m4-2.5v2.5M2.5 8H5m-2.5 4H5m10-4h2.5M15 12h2.5`,
	workflows: "M3 6a2 2 0 0 1 2-2h3l2 2h5a2 2 0 0 1 2 2v6a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2z",
	theme: `${ring(10, 10, 6.5)}|M10 3.5a6.5 6.5 0 0 1 0 13z`,
	help: "M7 7.5a3 3 0 1 1 4.3 2.7c-.8.4-1.3 1-1.3 2v.3M10 15.5h.01"
};
