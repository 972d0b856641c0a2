import assert from "node:assert/strict";
import { test } from "node:test";

import { serviceAddresses } from "../../../frontend/js/config.js";

test("the page takes addresses of its own machine only", () => {
  const usual = { fp4: "http://pictures.lan:8000", bf16: "http://pictures.lan:8001" };
  const loopback = "http://127.0.0.1:8123";
  const addresses = {
    "http://pictures.lan:9000/": usual,
    [`http://pictures.lan:9000/?bf16=${loopback}`]: { ...usual, bf16: loopback },
    [`http://pictures.lan:9000/?fp4=${loopback}&bf16=`]: { fp4: loopback },
    "http://pictures.lan:9000/?bf16=http://elsewhere.example:8001": usual,
    "http://pictures.lan:9000/?bf16=http://127.0.0.1.elsewhere.example": usual,
    "http://pictures.lan:9000/?bf16=http://127.0.0.1:80@elsewhere.example": usual,
    "http://pictures.lan:9000/?bf16=//elsewhere.example": usual,
    "http://pictures.lan:9000/?bf16=javascript:alert(1)": usual,
    [`http://pictures.lan:8155/ui/?bf16=${loopback}`]: { bf16: "http://pictures.lan:8155" },
    "http://pictures.lan:8001/ui/": usual,
    "http://pictures.lan:9000/uikit/": usual,
  };
  for (const [page, taken] of Object.entries(addresses)) {
    assert.deepEqual(serviceAddresses(new URL(page), "bf16").addresses, taken, page);
  }
});
