"""Train a LoRA for FLUX.1 from a folder of pictures with captions.

    python -m scripts.train_lora pictures/ --model <FLUX.1 folder or id> --output cat.safetensors
    python -m scripts.train_lora --preset sketch

`pictures/` holds `name.png` (or .jpg, .webp) and `name.txt` with the caption of each. The same code
trains for FLUX.1 on a GPU and for the embedded model on a CPU. `--preset` draws the pictures of one
of the example LoRAs itself and trains it for the embedded model.

The state of a run is kept under `--work`; started again with the same settings, the script goes on
from there and writes the bytes of an uninterrupted run. docs/lora-training.md explains the options.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from scripts.lora.adapter import LAYER_GROUPS, LayersError, find_layers
from scripts.lora.encoded import encode
from scripts.lora.files import (
    FORMATS,
    FormatError,
    check_folder,
    check_form,
    check_output,
    write_lora,
)
from scripts.lora.metadata import Description
from scripts.lora.picture_folder import TrainingDataError, fingerprint, read_folder
from scripts.lora.presets import PRESETS, draw_plain, redraw
from scripts.lora.training import Plan, ResumeError, TrainingFailed, sampler_levels, train

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "models/embedded"
EXAMPLES = ROOT / "models/embedded-loras"
CHANNELS = 64  # of a token of packed latents
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NATIVE = "native"


class ModelError(ValueError):
    """A model that is not there, or not FLUX.1."""


EXPECTED = (TrainingDataError, FormatError, LayersError, ResumeError, ModelError, TrainingFailed)


def main(words: list[str] | None = None) -> None:
    """Train and write one LoRA."""
    arguments = parse_arguments(words)
    try:
        run(arguments)
    except EXPECTED as error:
        sys.exit(f"train_lora: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"train_lora: the GPU's memory is full ({error}); try --gradient-checkpointing, a lower "
            "--resolution, --batch-size 1 with --accumulation, or fewer --layers"
        )


def run(arguments: argparse.Namespace) -> None:
    """Train as the arguments say; raises one of EXPECTED."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype, device, plan = DTYPES[arguments.dtype], arguments.device, arguments.plan
    output: Path = arguments.output
    check_output(output)
    work: Path = arguments.work
    folder: Path = arguments.pictures
    if arguments.preset:
        check_folder(work, "--work")
        folder = work / "pictures"
        plain = work / "plain"
        draw_plain(arguments.model, plain)
        redraw(PRESETS[arguments.preset], plain, folder)
    examples = read_folder(folder, resolution_px=arguments.resolution_px, caption=arguments.caption)
    check_model(arguments.model, plan, arguments.form)
    check_folder(work, "--work")
    state_path = work / "state.pt"
    if arguments.restart:
        state_path.unlink(missing_ok=True)
    encoded = encode(
        arguments.model,
        examples,
        trigger_word=arguments.trigger_word,
        device=device,
        dtype=dtype,
        max_text_tokens=arguments.max_text_tokens,
    )
    transformer = FluxTransformer2DModel.from_pretrained(
        arguments.model, subfolder="transformer", dtype=dtype
    ).to(device)
    lora, steps = train(
        transformer,
        load_scheduler(arguments.model),
        encoded,
        plan,
        state_path=state_path,
        data=fingerprint(examples),
        save_every=arguments.save_every,
        checkpointing=arguments.gradient_checkpointing,
        stop_after=arguments.stop_after,
    )
    description = Description(
        title=arguments.title or output.stem,
        base_model=arguments.base_model or Path(arguments.model).name,
        guidance_embeds=bool(transformer.config.guidance_embeds),
        resolution_px=arguments.resolution_px or max(min(e.size) for e in examples),
        trigger_word=arguments.trigger_word,
        steps=steps,
        pictures=len(examples),
        licence=arguments.licence,
    )
    write_lora(output, lora, description, form=arguments.form, dtype=DTYPES[arguments.save_dtype])
    print(f"wrote {output}: {output.stat().st_size:,} bytes, {arguments.form}, {steps} steps")


def check_model(model: str, plan: Plan, form: str) -> None:
    """Find out before anything is encoded whether the layers exist and the format has them."""
    try:
        config = FluxTransformer2DModel.load_config(model, subfolder="transformer")
    except OSError as error:
        raise ModelError(
            f"--model {model} is no folder of a diffusers model, and the Hub gave none of that id: "
            f"{error}"
        ) from error
    kind = config.get("_class_name")
    if kind != FluxTransformer2DModel.__name__ or config.get("in_channels") != CHANNELS:
        raise ModelError(
            f"--model {model} has a {kind} of {config.get('in_channels')} channels; this trains "
            f"FLUX.1 for text to image, a {FluxTransformer2DModel.__name__} of {CHANNELS}"
        )
    with torch.device("meta"):
        skeleton = FluxTransformer2DModel.from_config(config)
    check_form(form, find_layers(skeleton, plan.layers))
    sampler_levels(load_scheduler(model), plan.sampler_steps)


def load_scheduler(model: str) -> FlowMatchEulerDiscreteScheduler:
    """Return the model's scheduler, which knows its noise levels."""
    return FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it leaves out comes from the preset, if there is one."""
    arguments = _parser().parse_args(words)
    preset = PRESETS.get(arguments.preset or "")
    if (preset is None) == (arguments.pictures is None):
        _parser().error("give a folder of pictures, or --preset, and not both")
    if preset is not None:
        arguments.output = arguments.output or EXAMPLES / f"{preset.style}.safetensors"
        arguments.form = arguments.form or preset.form
        arguments.trigger_word = arguments.trigger_word or preset.trigger_word
        arguments.resolution_px = arguments.resolution_px or NATIVE
        arguments.licence = arguments.licence or "Apache-2.0"
        arguments.base_model = arguments.base_model or "FLUX API embedded model"
    if arguments.output is None:
        _parser().error("--output is missing: the file to write, ending in .safetensors")
    arguments.form = arguments.form or "diffusers"
    if arguments.resolution_px == NATIVE:
        arguments.resolution_px = None
    elif arguments.resolution_px is None:
        arguments.resolution_px = 512
    work = ROOT / "models_cache/lora-training"
    arguments.work = arguments.work or work / arguments.output.stem
    arguments.plan = _plan(arguments, preset.plan if preset else None)
    return arguments


_OWN_PLAN = Plan(
    steps=1000,
    rank=16,
    alpha=16.0,
    layers="attention",
    learning_rate=1e-4,
    warm_up_steps=50,
)
_PLAN_OPTIONS = (
    "steps", "rank", "alpha", "layers", "learning_rate", "batch_size", "accumulation",
    "warm_up_steps", "schedule", "ema_decay", "trigger_share", "guidance_scale", "sampler_steps",
    "seed",
)  # fmt: skip


def _plan(arguments: argparse.Namespace, preset: Plan | None) -> Plan:
    told = {name: getattr(arguments, name) for name in _PLAN_OPTIONS}
    told = {name: value for name, value in told.items() if value is not None}
    if "rank" in told and "alpha" not in told:
        told["alpha"] = float(told["rank"])
    return replace(preset or _OWN_PLAN, **told)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_lora",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    parser.add_argument("pictures", type=Path, nargs="?", help="folder of pictures and captions")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="an example LoRA, all by itself")
    parser.add_argument("--model", default=str(EMBEDDED), help="diffusers folder, or id of the Hub")
    parser.add_argument("--output", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--format", dest="form", choices=tuple(FORMATS), help="(diffusers)")
    parser.add_argument("--save-dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--trigger-word", help="goes before captions and into the metadata")
    parser.add_argument(
        "--trigger-share", type=_share, help="of the captions that it goes before (1)"
    )
    parser.add_argument("--caption", help="of pictures that have no text file")
    parser.add_argument(
        "--resolution",
        dest="resolution_px",
        type=_resolution,
        help="pixels of the side of a square of the pictures' area, or native (512)",
    )
    parser.add_argument("--rank", type=_positive, help="(16)")
    parser.add_argument("--alpha", type=_above_zero, help="the scale is alpha / rank (the rank)")
    parser.add_argument(
        "--layers", help=f"{', '.join(LAYER_GROUPS)} or a regular expression (attention)"
    )
    parser.add_argument("--steps", type=_positive, help="(1000)")
    parser.add_argument("--learning-rate", type=_above_zero, help="(1e-4)")
    parser.add_argument("--warm-up-steps", type=int, help="(50)")
    parser.add_argument("--schedule", choices=("constant", "cosine"), help="(constant)")
    parser.add_argument("--batch-size", type=_positive, help="(1)")
    parser.add_argument("--accumulation", type=_positive, help="batches a step (1)")
    parser.add_argument("--ema-decay", type=_share, help="average of the weights; 0: none (0)")
    parser.add_argument("--guidance-scale", type=float, help="for models distilled with it (3.5)")
    parser.add_argument(
        "--sampler-steps", type=_positive, help="of models that draw in few steps, as schnell: 4"
    )
    parser.add_argument("--max-text-tokens", type=_positive, help="(as many as the model reads)")
    parser.add_argument("--seed", type=int, help="(0)")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--work", type=Path, help="folder of the run's state")
    parser.add_argument("--save-every", type=_positive, default=100, help="steps")
    parser.add_argument("--stop-after", type=_positive, help="steps; write what there is, and stop")
    parser.add_argument("--restart", action="store_true", help="forget the state")
    parser.add_argument("--title", help="for the metadata (the file's name)")
    parser.add_argument("--base-model", help="for the metadata (the model's name)")
    parser.add_argument("--licence", help="for the metadata")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _resolution(text: str) -> int | str:
    return text if text == NATIVE else _positive(text)


if __name__ == "__main__":
    main()
