import assert from "node:assert/strict";
import { test } from "node:test";

import { differenceMap, psnr, ssim } from "../../../frontend/js/graph/difference.js";
import { generator } from "./random_edits.mjs";

function picture(width, height, valueAt) {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let i = 0; i < data.length; i += 4) {
    data.set([valueAt(i), valueAt(i + 1), valueAt(i + 2), 255], i);
  }
  return { width, height, data };
}

test("equal pictures have no distance", () => {
  const random = generator(1);
  const noise = picture(32, 16, () => random() * 255);
  assert.equal(psnr(noise, noise), Infinity);
  assert.ok(Math.abs(ssim(noise, noise) - 1) < 1e-9);
});

test("a difference of ten everywhere has the PSNR of the formula", () => {
  const a = picture(16, 16, () => 100);
  const b = picture(16, 16, () => 110);
  assert.ok(Math.abs(psnr(a, b) - 10 * Math.log10(255 ** 2 / 100)) < 1e-9);
});

test("the SSIM of flat pictures is its luminance term", () => {
  const c1 = (0.01 * 255) ** 2;
  const expected = (2 * 100 * 110 + c1) / (100 ** 2 + 110 ** 2 + c1);
  assert.ok(Math.abs(ssim(picture(16, 16, () => 100), picture(16, 16, () => 110)) - expected) < 1e-6);
});

test("the map is black where they agree and brighter where they do not", () => {
  const map = differenceMap(picture(2, 1, () => 10), picture(2, 1, (i) => (i < 4 ? 10 : 20)), 8);
  assert.deepEqual([...map.data], [0, 0, 0, 255, 80, 80, 80, 255]);
});

test("pictures of different sizes cannot be compared", () => {
  assert.throws(() => psnr(picture(2, 2, () => 0), picture(2, 3, () => 0)), /2 × 2 and 2 × 3/);
});
