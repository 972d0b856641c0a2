"""A stand-in for mflux's commands: their options, their words and bars, a picture that follows from seed and prompt.

`install(folder)` writes the commands. What the first word of a prompt says is done:

    fetch     bars of downloads before the sampler's
    quiet     no bar at all
    crash     a traceback after the first step
    gated     the Hub refuses the model
    offline   the Hub is not to be had
    memory    Metal has no room, unless in low-RAM mode
    killed    ends by SIGKILL after the first step
    battery   says why it stops, and ends well without a picture
    small     a picture of half the size
    hang      goes on for ever after the first step, deaf to SIGTERM
    family    the same with a child process; its id is written to the file that the prompt names
    leave     ends well and leaves such a child process running, which holds the output open
    slow      waits for the file that the prompt names before its first bar
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

COMMANDS = ("mflux-generate", "mflux-generate-flux2", "mflux-generate-z-image-turbo")
LAYERS = 38  # that a LoRA of the stand-in finds


def install(folder: Path) -> None:
    """Write the commands into a folder for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        script.chmod(0o755)


def main() -> None:
    args = _parse()
    prompt = args.prompt_file.read_text("utf-8").strip()
    word, _, rest = prompt.partition(" ")
    for path, scale in zip(args.lora_paths or (), args.lora_scales or (), strict=True):
        _apply_lora(path, scale)
    if word == "gated":
        raise OSError("GatedRepoError: 403 Client Error. Access to model schnell is restricted")
    if word == "offline":
        raise OSError("LocalEntryNotFoundError: outgoing traffic has been disabled")
    if word == "slow":
        while not Path(rest).exists():
            time.sleep(0.02)
    if word == "fetch":
        for _ in _bar(3, desc="Fetching 3 files"):
            time.sleep(0.01)
    if word == "battery":
        print("Battery below 5% threshold: 3%")
        return print("Peak MLX memory: 1.00 GB")
    output = Path(args.output)
    if len(args.seed) > 1:
        output = output.with_stem(output.stem + "_seed_{seed}")
    for seed in args.seed:
        _draw(args, prompt, seed, Path(str(output).format(seed=seed)))
    if word == "leave":
        _write_child(Path(rest))
    print("Peak MLX memory: 1.00 GB")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=sys.argv[1])
    parser.add_argument("--model", "-m")
    parser.add_argument("--quantize", "-q", type=int, choices=[3, 5, 4, 6, 8])
    parser.add_argument("--lora-paths", nargs="*")
    parser.add_argument("--lora-scales", nargs="*", type=float)
    parser.add_argument("--prompt-file", type=Path, required=True)
    parser.add_argument("--seed", type=int, nargs="+")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--image-path", type=Path)
    parser.add_argument("--image-strength", type=float, default=0.4)
    parser.add_argument("--output", default="image.png")
    parser.add_argument("--low-ram", action="store_true")
    return parser.parse_args(sys.argv[2:])


def _apply_lora(path: str, scale: float) -> None:
    print(f"🔧 Applying LoRA: {Path(path).name} (scale={scale})")
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = [name for name in header if name != "__metadata__"]
    found = [name for name in names if "stranger" not in name and not name.startswith("lora_te")]
    if any("misfit" in name for name in names):
        raise ValueError(f"2 of the 4 layers named by {Path(path).name} could not be applied")
    if found:
        print(f"   ✅ Applied to {LAYERS} layers ({len(found)}/{len(names)} keys matched)")
    if len(found) < len(names):
        print(f"   ⚠️  {len(names) - len(found)} unmatched keys in LoRA file:")


def _draw(args: argparse.Namespace, prompt: str, seed: int, path: Path) -> None:
    from PIL import Image

    word, _, rest = prompt.partition(" ")
    first = 0
    if args.image_path is not None and args.image_strength > 0:
        first = max(1, int(args.steps * args.image_strength))
    for step in range(first, args.steps) if word == "quiet" else _bar(args.steps, first=first):
        if step == first:
            _fault(word, rest, args)
    colour = _colour(prompt, seed)
    if args.image_path is not None:
        with Image.open(args.image_path) as start:
            colour = start.convert("RGB").getpixel((0, 0))
    half = 2 if word == "small" else 1
    Image.new("RGB", (args.width // half, args.height // half), colour).save(path)


def _colour(prompt: str, seed: int) -> tuple[int, int, int]:
    return (seed % 256, len(prompt) % 256, 7)


def _bar(total: int, *, first: int = 0, desc: str | None = None):
    # The package's own __init__ is not run: what it brings besides takes longer than all else here.
    spec = importlib.util.find_spec("tqdm")
    assert spec is not None
    sys.modules["tqdm"] = importlib.util.module_from_spec(spec)
    from tqdm.std import tqdm

    return tqdm(range(first, total), desc=desc, mininterval=0)


def _fault(word: str, rest: str, args: argparse.Namespace) -> None:
    if word == "crash":
        raise ValueError("the tensors do not fit")
    if word == "memory" and not args.low_ram:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "family":
        _write_child(Path(rest))
    if word in ("hang", "family"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)


def _write_child(mark: Path) -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    mark.with_suffix(".part").write_text(str(child.pid))
    mark.with_suffix(".part").rename(mark)


if __name__ == "__main__":
    main()
