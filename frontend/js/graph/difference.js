/**
 * How far two pictures of one size are from each other. PSNR is over all RGB samples, as usual with
 * a peak of 255. SSIM is of the luma (Rec. 601), with the 11-pixel Gaussian window (σ 1.5) and the
 * constants of Wang et al. 2004, averaged over the places where the whole window lies inside.
 */

const WINDOW = 11;
const SIGMA = 1.5;
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

/** @type {Fn.psnr} */
export function psnr(a, b) {
	requireSameSize(a, b);
	let sum = 0;
	for (let i = 0; i < a.data.length; i++) {
		if (i % 4 < 3) sum += (Number(a.data[i]) - Number(b.data[i])) ** 2;
	}
	const mean = sum / ((a.data.length / 4) * 3);
	return mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean);
}

/** @type {Fn.ssim} */
export function ssim(a, b) {
	requireSameSize(a, b);
	const {width, height} = a;
	if (width < WINDOW || height < WINDOW) throw new Error(`the pictures are smaller than the window of ${WINDOW} px`);
	const [x, y] = [luma(a), luma(b)];
	/** @type {Fn.meanOfProducts} */
	const meanOfProducts = (first, second) =>
		blur(first.map((value, i) => value * Number(second[i])), width, height);
	const [meanX, meanY] = [blur(x, width, height), blur(y, width, height)];
	const [squareX, squareY, product] = [meanOfProducts(x, x), meanOfProducts(y, y), meanOfProducts(x, y)];
	let sum = 0;
	for (let i = 0; i < meanX.length; i++) {
		const [mx, my] = [Number(meanX[i]), Number(meanY[i])];
		const variances = Number(squareX[i]) - mx * mx + Number(squareY[i]) - my * my;
		const covariance = Number(product[i]) - mx * my;
		sum += ((2 * mx * my + C1) * (2 * covariance + C2)) / ((mx * mx + my * my + C1) * (variances + C2));
	}
	return sum / meanX.length;
}

/** @type {Fn.differenceMap} */
export function differenceMap(a, b, gain = 8) {
	requireSameSize(a, b);
	return {...sizeOf(a), data: a.data.map((value, i) => (i % 4 < 3 ? gain * Math.abs(value - Number(b.data[i])) : 255))};
}

/** @param {Pixels} picture */
function luma({data}) {
	return Float64Array.from(
		{length: data.length / 4},
		(_, i) => 0.299 * Number(data[4 * i]) + 0.587 * Number(data[4 * i + 1]) + 0.114 * Number(data[4 * i + 2])
	);
}

/** @type {Fn.blur} */
function blur(values, width, height) {
	const rows = weighted(values, width - WINDOW + 1, height, width, 1);
	return weighted(rows, width - WINDOW + 1, height - WINDOW + 1, width - WINDOW + 1, width - WINDOW + 1);
}

/** @type {Fn.weighted} */
function weighted(values, width, height, stride, step) {
	const result = new Float64Array(width * height);
	for (let y = 0; y < height; y++) {
		for (let x = 0; x < width; x++) {
			let sum = 0;
			for (let k = 0; k < WINDOW; k++) sum += Number(KERNEL[k]) * Number(values[y * stride + x + k * step]);
			result[y * width + x] = sum;
		}
	}
	return result;
}

const BELL = Array.from({length: WINDOW}, (_, i) => Math.exp(-((i - (WINDOW - 1) / 2) ** 2) / (2 * SIGMA ** 2)));
const TOTAL = BELL.reduce((sum, weight) => sum + weight, 0);
const KERNEL = BELL.map(weight => weight / TOTAL);

/** @param {Pixels} picture */
const sizeOf = ({width, height}) => ({width, height});

/** @param {Pixels} a @param {Pixels} b */
function requireSameSize(a, b) {
	const words = [a, b].map(({width, height}) => `${width} × ${height}`);
	if (words[0] !== words[1]) throw new Error(`the pictures differ in size: ${words.join(" and ")}`);
}
