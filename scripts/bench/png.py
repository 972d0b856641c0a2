"""The PNG of a picture: ours beside Pillow's, in time and bytes.

    python -m scripts.bench.png [--rounds 7] [--side 1024]

Three pictures of 1024 x 1024 px: the embedded model's samples enlarged, which are smoother than
what a 12-billion-parameter model draws; the same with a camera's noise (standard deviation 2 of 255);
and with much noise. Encoders take turns, the order turned round
each time; the first round is not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from config.settings import ROOT
from scripts.bench.comparison import HEADER, Comparison
from utils import png

SIDE_PX = 1024
NOISES = {"smooth": 0.0, "camera's noise": 2.0, "much noise": 8.0}
TEXTS = {
    "parameters": "a red balloon over green hills at sunset\nSteps: 4, Seed: 7, Size: 1024x1024",
    "flux_api": json.dumps({"prompt": "a red balloon over green hills at sunset", "seed": 7}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=SIDE_PX, help="of the pictures, px")
    options = parser.parse_args()
    print(HEADER.format(other="Pillow, its default"))
    for name, noise in NOISES.items():
        image = picture(noise, options.side)
        encoders = {"pillow": lambda i=image: pillow(i), "ours": lambda i=image: ours(i)}
        ms, size = compare(encoders, options.rounds)
        with Image.open(io.BytesIO(ours(image))) as again:
            if again.tobytes() != image.tobytes():
                raise SystemExit(f"{name}: the pixels are not those that went in")
        times = Comparison(what=f"{name}: time, and how many times as fast", ours=ms["ours"], others=ms["pillow"], unit="ms", wanted="≥ 15", inverse=True)  # fmt: skip
        sizes = Comparison(what=f"{name}: size", ours=[size["ours"] / 1e6], others=[size["pillow"] / 1e6], unit="MB", wanted="≤ 1.2")  # fmt: skip
        print(f"{times.row()}\n{sizes.row()}", flush=True)


def picture(noise: float, side_px: int) -> Image.Image:
    with Image.open(ROOT / "models" / "embedded" / "samples.png") as samples:
        large = samples.convert("RGB").resize((side_px, side_px), Image.Resampling.LANCZOS)
    values = np.asarray(large, np.float64)
    values = values + np.random.default_rng(0).normal(0, noise, values.shape) if noise else values
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def pillow(image: Image.Image) -> bytes:
    texts = PngInfo()
    for keyword, words in TEXTS.items():
        texts.add_itxt(keyword, words)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def ours(image: Image.Image) -> bytes:
    return png.encode_rgb(image, TEXTS.items())


def compare(
    encoders: dict[str, Callable[[], bytes]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Milliseconds of each in every round, and its bytes."""
    milliseconds: dict[str, list[float]] = {name: [] for name in encoders}
    sizes: dict[str, int] = {}
    for turn in range(rounds + 1):
        for name in encoders if turn % 2 else reversed(encoders):
            started = time.perf_counter()
            sizes[name] = len(encoders[name]())
            if turn:
                milliseconds[name].append((time.perf_counter() - started) * 1000)
    return milliseconds, sizes


if __name__ == "__main__":
    main()
