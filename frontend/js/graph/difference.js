/**
 * How far two pictures of one size are from each other. PSNR is over all RGB samples, as usual with
 * a peak of 255. SSIM is of the luma (Rec. 601), with the 11-pixel Gaussian window (σ 1.5) and the
 * constants of Wang et al. 2004, averaged over the places where the whole window lies inside.
 */

/** @typedef {{width: number, height: number, data: Uint8ClampedArray}} Pixels RGBA, row by row */

const WINDOW = 11;
const SIGMA = 1.5;
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

/** Decibels; Infinity for equal pictures. @param {Pixels} a @param {Pixels} b */
export function psnr(a, b) {
  requireSameSize(a, b);
  let sum = 0;
  for (let i = 0; i < a.data.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) {
      sum += (Number(a.data[i + channel]) - Number(b.data[i + channel])) ** 2;
    }
  }
  const mean = sum / ((a.data.length / 4) * 3);
  return mean === 0 ? Infinity : 10 * Math.log10(255 ** 2 / mean);
}

/** -1 to 1; 1 for equal pictures. @param {Pixels} a @param {Pixels} b */
export function ssim(a, b) {
  requireSameSize(a, b);
  const { width, height } = a;
  if (width < WINDOW || height < WINDOW) {
    throw new Error(`the pictures are smaller than the window of ${WINDOW} px`);
  }
  const x = luma(a);
  const y = luma(b);
  /** @param {(i: number) => number} value */
  const blurred = (value) => blur(Float64Array.from(x, (_, i) => value(i)), width, height);
  const at = (/** @type {Float64Array} */ list, /** @type {number} */ i) => Number(list[i]);
  const meanX = blur(x, width, height);
  const meanY = blur(y, width, height);
  const squareX = blurred((i) => at(x, i) ** 2);
  const squareY = blurred((i) => at(y, i) ** 2);
  const product = blurred((i) => at(x, i) * at(y, i));
  let sum = 0;
  for (let i = 0; i < meanX.length; i++) {
    const mx = at(meanX, i);
    const my = at(meanY, i);
    const vx = at(squareX, i) - mx * mx;
    const vy = at(squareY, i) - my * my;
    const covariance = at(product, i) - mx * my;
    sum += ((2 * mx * my + C1) * (2 * covariance + C2)) / ((mx * mx + my * my + C1) * (vx + vy + C2));
  }
  return sum / meanX.length;
}

/** Where they differ: black where they agree, brighter the more they do not (`gain` times). @param {Pixels} a @param {Pixels} b @param {number} [gain] */
export function differenceMap(a, b, gain = 8) {
  requireSameSize(a, b);
  const data = new Uint8ClampedArray(a.data.length);
  for (let i = 0; i < data.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) {
      data[i + channel] = gain * Math.abs(Number(a.data[i + channel]) - Number(b.data[i + channel]));
    }
    data[i + 3] = 255;
  }
  return { width: a.width, height: a.height, data };
}

/** @param {Pixels} picture */
function luma({ data }) {
  return Float64Array.from({ length: data.length / 4 }, (_, i) => 0.299 * Number(data[4 * i]) + 0.587 * Number(data[4 * i + 1]) + 0.114 * Number(data[4 * i + 2]));
}

/** Gaussian means where the whole window lies inside. @param {Float64Array} values @param {number} width @param {number} height */
function blur(values, width, height) {
  const kernel = gaussian();
  const outWidth = width - WINDOW + 1;
  const outHeight = height - WINDOW + 1;
  const rows = new Float64Array(outWidth * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++) {
      let sum = 0;
      for (let k = 0; k < WINDOW; k++) {
        sum += Number(kernel[k]) * Number(values[y * width + x + k]);
      }
      rows[y * outWidth + x] = sum;
    }
  }
  const result = new Float64Array(outWidth * outHeight);
  for (let y = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      let sum = 0;
      for (let k = 0; k < WINDOW; k++) {
        sum += Number(kernel[k]) * Number(rows[(y + k) * outWidth + x]);
      }
      result[y * outWidth + x] = sum;
    }
  }
  return result;
}

function gaussian() {
  const half = (WINDOW - 1) / 2;
  const weights = Array.from({ length: WINDOW }, (_, i) => Math.exp(-((i - half) ** 2) / (2 * SIGMA ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** @param {Pixels} a @param {Pixels} b */
function requireSameSize(a, b) {
  if (a.width !== b.width || a.height !== b.height) {
    throw new Error(`the pictures differ in size: ${a.width} × ${a.height} and ${b.width} × ${b.height}`);
  }
}
