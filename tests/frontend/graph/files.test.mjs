import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";

import { fromComfy, isComfy } from "../../../frontend/js/graph/comfy.js";
import { fromInfotext } from "../../../frontend/js/graph/infotext.js";
import { pictureTexts } from "../../../frontend/js/graph/picture_texts.js";
import { EXAMPLES } from "../../../frontend/js/graph/starters.js";
import { parse, serialise } from "../../../frontend/js/graph/workflow.js";
import { generator, randomCommand } from "./random_edits.mjs";
import { newDocument, perform } from "../../../frontend/js/graph/history.js";

// JPEG and WebP

/** TIFF with a user comment in its second directory. */
function exif(comment) {
  const head = Buffer.alloc(44);
  head.write("II*\0", "latin1");
  head.writeUInt32LE(8, 4);
  const entry = (at, tag, count, value) => {
    head.writeUInt16LE(1, at);
    head.writeUInt16LE(tag, at + 2);
    head.writeUInt16LE(7, at + 4);
    head.writeUInt32LE(count, at + 6);
    head.writeUInt32LE(value, at + 10);
  };
  entry(8, 0x8769, 1, 26);
  entry(26, 0x9286, comment.length, 44);
  return Buffer.concat([head, comment]);
}

const bigEndian = (text) => Buffer.concat([Buffer.from("UNICODE\0"), Buffer.from(text, "utf16le").swap16()]);
const littleEndian = (text) => Buffer.concat([Buffer.from("UNICODE\0"), Buffer.from(text, "utf16le")]);

function jpeg(tiff) {
  const body = Buffer.concat([Buffer.from("Exif\0\0"), tiff]);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(body.length + 2);
  return slice(Buffer.concat([Buffer.from([0xff, 0xd8, 0xff, 0xe1]), length, body, Buffer.from([0xff, 0xda, 0, 2])]));
}

function webp(tiff) {
  const size = Buffer.alloc(4);
  size.writeUInt32LE(tiff.length);
  return slice(Buffer.concat([Buffer.from("RIFF"), Buffer.alloc(4), Buffer.from("WEBPXXXX"), Buffer.from([1, 0, 0, 0, 9, 0]), Buffer.from("EXIF"), size, tiff]));
}

const slice = (all) => all.buffer.slice(all.byteOffset, all.byteOffset + all.length);

test("the comment of a JPEG and of a WebP holds both texts", async () => {
  for (const make of [jpeg, webp]) {
    const texts = await pictureTexts(make(exif(bigEndian('größer 🎈\nSteps: 4\nflux_api: {"a": 1}'))));
    assert.deepEqual(texts, { parameters: "größer 🎈\nSteps: 4", flux_api: '{"a": 1}' });
  }
});

test("the comment of another program is its parameters, in either order of bytes", async () => {
  assert.deepEqual(await pictureTexts(jpeg(exif(littleEndian("a boat\nSteps: 4")))), { parameters: "a boat\nSteps: 4" });
  assert.deepEqual(await pictureTexts(jpeg(exif(Buffer.from("ASCII\0\0\0a boat")))), { parameters: "a boat" });
});

test("a JPEG without a comment, or cut off anywhere, has no texts and is no error", async () => {
  const whole = jpeg(exif(bigEndian("a boat")));
  for (let length = 12; length < whole.byteLength - 12; length++) {
    assert.ok(await pictureTexts(whole.slice(0, length)));
  }
});

// Workflows

test("a workflow is what it was after saving and opening", () => {
  const random = generator(5);
  let document = newDocument(EXAMPLES[2].build("bf16"));
  for (let index = 0; index < 200; index++) {
    document = perform(document, randomCommand(document.graph, random));
  }
  const text = JSON.stringify(serialise(document.graph, "mine"));
  assert.deepEqual(parse(JSON.parse(text)), { graph: document.graph, name: "mine" });
});

test("a workflow that is wrong is refused with the place", () => {
  const good = () => JSON.parse(JSON.stringify(serialise(EXAMPLES[0].build("bf16"), "")));
  const cases = [
    [(file) => (file.version = 2), /version is 2; this page reads version 1/],
    [(file) => (file.format = "x"), /another program's/],
    [(file) => (file.nodes[0].kind = "toString"), /nodes\[0\]\.kind is "toString"/],
    [(file) => (file.nodes[2].values.width = "x"), /nodes\[2\]\.values\.width is no number/],
    [(file) => (file.nodes[2].values.wide = 1), /nodes\[2\]\.values\.wide is no value of a sampler node/],
    [(file) => (file.nodes[1].id = "n1"), /one id/],
    [(file) => (file.nodes[1].x = null), /nodes\[1\]\.x is null/],
    [(file) => (file.wires[0].to = "n3.prompt"), /wire w1: .*does not fit/],
    [(file) => (file.wires[0].from = "n77.model"), /no such socket/],
    [(file) => (file.wires = {}), /wires is no list/],
    [(file) => file.wires.push({ id: "w9", from: "n4.image", to: "n3.image" }), /lead back/],
  ];
  for (const [spoil, message] of cases) {
    const file = good();
    spoil(file);
    assert.throws(() => parse(file), message);
  }
});

// PNG

function png(...chunks) {
  const parts = [Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])];
  for (const [kind, body] of [...chunks, ["IEND", Buffer.alloc(0)]]) {
    const head = Buffer.alloc(8);
    head.writeUInt32BE(body.length);
    head.write(kind, 4, "latin1");
    parts.push(head, body, Buffer.alloc(4));
  }
  const all = Buffer.concat(parts);
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
}

test("texts of all three kinds are read", async () => {
  const texts = await pictureTexts(
    png(
      ["tEXt", Buffer.from("a\0caf\xe9", "latin1")],
      ["zTXt", Buffer.concat([Buffer.from("b\0\0"), deflateSync(Buffer.from("packed"))])],
      ["iTXt", Buffer.concat([Buffer.from("c\0\0\0\0\0"), Buffer.from("日本 🎈")])],
      ["iTXt", Buffer.concat([Buffer.from("d\0\x01\0en\0x\0"), deflateSync(Buffer.from("größer"))])],
    ),
  );
  assert.deepEqual(texts, { a: "café", b: "packed", c: "日本 🎈", d: "größer" });
});

test("a file that is no PNG or is cut off is an error", async () => {
  await assert.rejects(pictureTexts(new ArrayBuffer(3)), /no PNG/);
  const whole = png(["tEXt", Buffer.from("a\0b")]);
  await assert.rejects(pictureTexts(whole.slice(0, 20)), /cut off/);
  await assert.rejects(pictureTexts(whole.slice(0, whole.byteLength - 12)), /cut off/);
});

test("a text that unpacks to far too much is an error", async () => {
  const bomb = Buffer.concat([Buffer.from("b\0\0"), deflateSync(Buffer.alloc(2 ** 23))]);
  await assert.rejects(pictureTexts(png(["zTXt", bomb])), /too large/);
});

// A1111

test("the text of A1111 is read with its LoRAs and its negative prompt", () => {
  const wanted = fromInfotext(
    "a lighthouse <lora:storm:0.7>,\nat night\nNegative prompt: people,\nboats\n" +
      'Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 3.5, Seed: 42, Size: 512x768, Model hash: abc, Model: dev, Lora hashes: "storm: 1, x: 2", Version: f2',
  );
  assert.deepEqual(wanted, {
    prompt: "a lighthouse ,\nat night",
    negative_prompt: "people,\nboats",
    true_cfg_scale: 3.5,
    num_inference_steps: 20,
    guidance_scale: null,
    seed: 42,
    width: 512,
    height: 768,
    model: "dev",
    loras: [{ name: "storm", weight: 0.7 }],
  });
});

test("any other text is none of A1111's", () => {
  assert.equal(fromInfotext("a picture of my cat"), null);
});

// ComfyUI

const SENT = {
  6: { class_type: "CLIPTextEncode", inputs: { text: "a cat", clip: ["4", 1] } },
  26: { class_type: "FluxGuidance", inputs: { guidance: 3.5, conditioning: ["6", 0] } },
  5: { class_type: "EmptySD3LatentImage", inputs: { width: 512, height: 768, batch_size: 2 } },
  4: { class_type: "UNETLoader", inputs: { unet_name: "flux1-dev.safetensors", weight_dtype: "default" } },
  7: { class_type: "LoraLoaderModelOnly", inputs: { lora_name: "styles/ink.safetensors", strength_model: 0.7, model: ["4", 0] } },
  3: { class_type: "KSampler", inputs: { seed: 9, steps: 20, cfg: 1, positive: ["26", 0], negative: ["33", 0], latent_image: ["5", 0], model: ["7", 0] } },
  33: { class_type: "CLIPTextEncode", inputs: { text: "ugly", clip: ["4", 1] } },
  8: { class_type: "ControlNetLoader", inputs: {} },
};
const WANTED = {
  prompt: "a cat",
  guidance_scale: 3.5,
  num_inference_steps: 20,
  seed: 9,
  width: 512,
  height: 768,
  num_images: 2,
  model: "flux-dev",
  loras: [{ name: "ink", weight: 0.7 }],
};

test("a workflow that ComfyUI sends is read from its sampler backwards", () => {
  const { wanted, leftOut } = fromComfy(SENT);
  assert.deepEqual(wanted, WANTED);
  assert.ok(leftOut.includes("ControlNetLoader"));
});

test("a workflow that ComfyUI saves is the same", () => {
  const links = [];
  const link = (from) => links.push([links.length + 1, from, 0, 0, 0, "X"]);
  const node = (id, type, widgets_values, inputs = {}) => ({
    id,
    type,
    widgets_values,
    inputs: Object.entries(inputs).map(([name, from]) => ({ name, link: link(from) })),
  });
  const nodes = [
    node(6, "CLIPTextEncode", ["a cat"]),
    node(26, "FluxGuidance", [3.5], { conditioning: 6 }),
    node(5, "EmptySD3LatentImage", [512, 768, 2]),
    node(4, "UNETLoader", ["flux1-dev.safetensors", "default"]),
    node(7, "LoraLoaderModelOnly", ["styles/ink.safetensors", 0.7], { model: 4 }),
    node(3, "KSampler", [9, "randomize", 20, 1, "euler", "simple", 1], { positive: 26, latent_image: 5, model: 7 }),
  ];
  assert.deepEqual(fromComfy({ nodes, links }).wanted, WANTED);
});

test("the workflow with a custom sampler is read too", () => {
  const { wanted } = fromComfy({
    ...SENT,
    3: { class_type: "SamplerCustomAdvanced", inputs: { noise: ["25", 0], guider: ["22", 0], sampler: ["16", 0], sigmas: ["17", 0], latent_image: ["5", 0] } },
    25: { class_type: "RandomNoise", inputs: { noise_seed: 9 } },
    22: { class_type: "BasicGuider", inputs: { model: ["7", 0], conditioning: ["26", 0] } },
    17: { class_type: "BasicScheduler", inputs: { scheduler: "simple", steps: 20, denoise: 1, model: ["7", 0] } },
    16: { class_type: "KSamplerSelect", inputs: { sampler_name: "euler" } },
  });
  assert.deepEqual(wanted, WANTED);
});

test("a file of neither form is none of ComfyUI's, and one without a sampler says so", () => {
  assert.equal(isComfy({ format: "something" }), false);
  assert.throws(() => fromComfy({ 1: { class_type: "SaveImage", inputs: {} } }), /none of the samplers/);
});

// Hostile ones

test("long texts made to be slow are read at once", () => {
  const began = process.cpuUsage().user;
  assert.equal(fromInfotext(`${"A".repeat(300_000)}, Steps: 4`).num_inference_steps, 4);
  assert.equal(fromInfotext(`${"<lora:a".repeat(100_000)}\nSteps: 4`).loras, undefined);
  assert.ok(process.cpuUsage().user - began < 2_000_000);
});

test("a text in a PNG that is too large is refused", async () => {
  const length = 2 ** 22 + 1;
  const file = Buffer.alloc(8 + 12 + length);
  file.write("\x89PNG\r\n\x1a\n", "latin1");
  file.writeUInt32BE(length, 8);
  file.write("tEXt", 12, "latin1");
  await assert.rejects(pictureTexts(slice(file)), /too large/);
});

test("what is wrong in a workflow is said in few words", () => {
  const file = { format: "flux-api workflow", nodes: [], wires: [] };
  assert.throws(() => parse({ ...file, version: "9".repeat(100_000) }), ({ message }) => message.length < 200);
  const sampler = { id: "n1", kind: "sampler", x: 0, y: 0 };
  const loop = { ...file, version: 1, nodes: [sampler], wires: [{ id: "w1", from: "n1.image", to: "n1.image" }] };
  assert.throws(() => parse(loop), /starts$/);
});
