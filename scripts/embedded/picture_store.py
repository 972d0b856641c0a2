"""Many postcards in memory, drawn by several processes."""

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy
import torch
from tqdm import tqdm

from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import Scene, random_scene

CHUNK = 50  # pictures drawn by one call of a process


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureStore:
    """Drawn pictures of one size with their scenes and masks."""

    scenes: list[Scene]
    pictures: torch.Tensor  # (n, 3, height, width) uint8
    masks: torch.Tensor  # (n, height / 16, width / 16) uint8, 255 where the subject covers all


def draw_pictures(
    count: int,
    seed: int,
    size: tuple[int, int],
    processes: int = 2,
    quiet: bool = False,
) -> PictureStore:
    """Draw `count` random scenes at `size` (width, height); picture i depends on seed and i."""
    chunks = [(seed, start, min(start + CHUNK, count), size) for start in range(0, count, CHUNK)]
    scenes: list[Scene] = []
    width, height = size
    pictures = torch.empty((count, 3, height, width), dtype=torch.uint8)
    masks = torch.empty((count, height // 16, width // 16), dtype=torch.uint8)
    with ProcessPoolExecutor(processes) as pool:
        done = pool.map(_draw_chunk, chunks)
        label = f"drawing {width}x{height}"
        for chunk in tqdm(done, total=len(chunks), desc=label, disable=quiet):
            for scene, picture, mask in chunk:
                row = len(scenes)
                pictures[row] = torch.from_numpy(picture).permute(2, 0, 1)
                masks[row] = torch.from_numpy(mask)
                scenes.append(scene)
    return PictureStore(scenes=scenes, pictures=pictures, masks=masks)


def to_model_range(pictures: torch.Tensor) -> torch.Tensor:
    """Turn uint8 pictures into float32 from -1 to 1."""
    return pictures.float() / 127.5 - 1


def _draw_chunk(
    task: tuple[int, int, int, tuple[int, int]],
) -> list[tuple[Scene, numpy.ndarray, numpy.ndarray]]:
    seed, start, stop, size = task
    drawn = []
    for index in range(start, stop):
        rng = random.Random(f"{seed}/{index}")
        scene = random_scene(rng)
        card = draw_postcard(scene, rng, size)
        mask = card.mask.reduce(16)
        drawn.append((scene, numpy.asarray(card.picture), numpy.asarray(mask)))
    return drawn
