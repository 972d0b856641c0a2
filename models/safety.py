"""Whether a picture is not safe for work, said by a classifier whose weights are on this machine.

Two kinds of weights are known by their config.json: an image classifier of transformers with a label
such as "nsfw" (Falconsai/nsfw_image_detection), and the checker that comes with Stable Diffusion 1.5.
It computes on the CPU in FP32, beside the drawing: no GPU memory is taken, and a verdict is the same
everywhere. `find` looks at files alone and imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from config.catalog import Catalog
from config.errors import ModelUnavailable
from config.settings import ROOT, ModelSettings
from models.hub import on_disk

HUB_ID = "Falconsai/nsfw_image_detection"
_ID_OF_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
PART = "safety_checker"  # the folder in a pipeline that has one
RECIPE = "preprocessor_config.json"
THRESHOLD = 0.5
BLURRED_PX = 6  # what is left of the longer side
UNSAFE = frozenset(
    {"nsfw", "unsafe", "porn", "hentai", "sexy", "nude", "nudity", "explicit", "sexual"}
)
_OF_STABLE_DIFFUSION = "StableDiffusionSafetyChecker"
_CLASSIFIER = "ForImageClassification"
# As CLIP's processor has it, for a checker without one of its own.
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where a checker is, and what it is called."""

    folder: Path
    name: str


class SafetyChecker(Protocol):
    def is_flagged(self, picture: Any) -> bool:
        """Whether a Pillow RGB picture is not safe for work."""


def find(wanted: str, hub: Path, catalog: Catalog) -> tuple[Weights | None, str]:
    """The checker's weights on this machine, or why there are none.

    `wanted` is FLUX_SAFETY_MODEL: a folder, a Hub id, or `auto`; `hub` the Hub's cache.
    """
    if wanted != "auto":
        weights = _at(wanted, hub)
        if weights is None:
            return None, f"{wanted} is no folder here and not in the Hub's cache; {_how(wanted)}"
        why_not = _why_not(weights.folder)
        return (weights, "") if why_not is None else (None, f"{wanted}: {why_not}")
    snapshot = on_disk.snapshot_of(hub, HUB_ID)
    places = [] if snapshot is None else [Weights(folder=snapshot, name=HUB_ID)]
    for row in catalog:
        pipeline = on_disk.snapshot_of(hub, row.source) if row.cloud is None else None
        if pipeline is not None and (pipeline / PART).is_dir():
            places.append(Weights(folder=pipeline / PART, name=f"{row.source}/{PART}"))
    faults = [(weights, _why_not(weights.folder)) for weights in places]
    for weights, why_not in faults:
        if why_not is None:
            return weights, ""
    broken = "".join(f" ({weights.name}: {why_not})" for weights, why_not in faults[:1])
    return None, f"no weights of a safety checker are on this machine{broken}; {_how('auto')}"


def is_named(models: ModelSettings) -> bool:
    """Whether the operator wants a certain checker: that it is not there is an error then."""
    return models.safety_checker != "off" and models.safety_model != "auto"


def hub_id_of(wanted: str) -> str | None:
    """What FLUX_SAFETY_MODEL means on the Hub; None where it names a folder."""
    if wanted == "auto":
        return HUB_ID
    is_id = _ID_OF_HUB.fullmatch(wanted) is not None and not (ROOT / wanted).is_dir()
    return wanted if is_id else None


def _how(wanted: str) -> str:
    hub_id = hub_id_of(wanted)
    if hub_id is None:
        return "name a folder with a checker, or an id of the Hub (owner/name)"
    return f"`python -m scripts.download_models --safety-checker` fetches {hub_id}"


def _at(wanted: str, hub: Path) -> Weights | None:
    folder = ROOT / wanted
    if folder.is_dir():
        return Weights(folder=folder, name=folder.name)
    snapshot = on_disk.snapshot_of(hub, wanted) if hub_id_of(wanted) else None
    return None if snapshot is None else Weights(folder=snapshot, name=wanted)


def _why_not(folder: Path) -> str | None:
    """Why a folder holds no checker that can be loaded; None when it does."""
    try:
        kind = _kind(_read_json(folder / "config.json"))
    except (OSError, ValueError) as error:
        return f"config.json cannot be read ({error.__class__.__name__})"
    if kind is None:
        return "config.json names neither an image classifier nor Stable Diffusion's checker"
    weights = list(folder.glob("*.safetensors"))
    if not weights or not all(map(on_disk.is_whole, weights)):
        return "its safetensors weights are missing or cut short"
    if kind == _CLASSIFIER and not (folder / RECIPE).is_file():
        return f"{RECIPE} is missing, which says how it looks at a picture"
    return None


def load(weights: Weights) -> SafetyChecker:
    """Read a checker. Raises ModelUnavailable, saying what is wrong with its files."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = weights.folder
    try:
        config = _read_json(folder / "config.json")
        if _kind(config) == _OF_STABLE_DIFFUSION:
            return _StableDiffusions(folder, _recipe(folder, folder.parent / "feature_extractor"))
        if not (folder / RECIPE).is_file():
            raise ValueError(f"{RECIPE} is missing")
        return _Classifier(weights, config, _recipe(folder))
    except MemoryError:
        raise
    except Exception as error:  # what a wrong value or file breaks inside has no common type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelUnavailable(
            f"the safety checker {weights.name} cannot be loaded: {reason.replace(str(folder), folder.name)}; "
            "fetch it again, or set FLUX_SAFETY_CHECKER=off"
        ) from error


class _Classifier:
    """A classifier of transformers: flagged is what its unsafe labels have together half a chance of."""

    def __init__(self, weights: Weights, config: Mapping[str, Any], recipe: _Recipe) -> None:
        from transformers import AutoModelForImageClassification

        labels = {int(index): str(label) for index, label in config["id2label"].items()}
        self._unsafe = [index for index, label in labels.items() if label.casefold() in UNSAFE]
        if not self._unsafe or len(self._unsafe) == len(labels):
            raise ValueError(
                f"its labels are {', '.join(labels.values())[:100]}, of which some must be one of "
                f"{', '.join(sorted(UNSAFE))} and some not"
            )
        self._recipe = recipe
        self._model = _read(AutoModelForImageClassification, weights.folder)

    def is_flagged(self, picture: Any) -> bool:
        import torch

        with torch.no_grad():
            chances = self._model(pixel_values=self._recipe.pixels(picture)).logits.softmax(-1)[0]
        return float(chances[self._unsafe].sum()) >= THRESHOLD


class _StableDiffusions:
    """The checker of Stable Diffusion 1.5: distances to concepts in CLIP's space."""

    def __init__(self, folder: Path, recipe: _Recipe) -> None:
        from diffusers.pipelines.stable_diffusion.safety_checker import (
            StableDiffusionSafetyChecker,
        )
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it would say of each flagged picture that it is black now
        self._recipe = recipe
        self._model = _read(StableDiffusionSafetyChecker, folder)

    def is_flagged(self, picture: Any) -> bool:
        import numpy

        unused = [numpy.zeros((1, 1, 3), dtype=numpy.float32)]  # it blackens what it is given
        _, flags = self._model(clip_input=self._recipe.pixels(picture), images=unused)
        return bool(flags[0])


def _read(kind: Any, folder: Path) -> Any:
    """A model whose every weight comes from its files and is a number.

    For one that is missing transformers draws a random value and goes on, and of what is no number nothing
    is ever over a threshold: such a checker would answer, and mean nothing.
    """
    import torch

    model, told = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"its weights lack {', '.join(missing)[:100]}")
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise ValueError(f"its weights are damaged: not all values of {name} are numbers")
    return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How a picture becomes what a checker looks at, as its RECIPE says."""

    side: tuple[int, int]  # width, height, px
    is_cropped: bool  # the shorter side is scaled to it, and the middle taken
    resample: int  # Pillow's number
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, picture: Any) -> Any:
        """(1, 3, height, width) float32."""
        import numpy
        import torch

        width, height = self.side
        size = self.side
        if self.is_cropped:
            scale = max(width / picture.width, height / picture.height)
            size = (
                max(width, round(picture.width * scale)),
                max(height, round(picture.height * scale)),
            )
        scaled = picture.convert("RGB").resize(size, self.resample)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        cut = scaled.crop((left, top, left + width, top + height))
        values = torch.from_numpy(numpy.asarray(cut, dtype=numpy.float32) / 255)
        values = (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        return values.permute(2, 0, 1).unsqueeze(0)


def _recipe(*folders: Path) -> _Recipe:
    """From the first folder that has a recipe, else CLIP's."""
    found = next(
        (path for folder in folders if (path := folder / RECIPE).is_file()),
        None,
    )
    values = {**_CLIP, **_without_crop(_read_json(found))} if found is not None else _CLIP
    size, crop = values["size"], values.get("crop_size")
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    target = crop if shortest is not None and crop is not None else size
    if isinstance(target, int):
        side = (target, target)
    else:
        side = (target.get("width", shortest), target.get("height", shortest))
    if values.get("do_normalize") is False:
        values = values | {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return _Recipe(
        side=side,
        is_cropped=shortest is not None,
        resample=values["resample"],
        mean=tuple(values["image_mean"]),
        std=tuple(values["image_std"]),
    )


def _without_crop(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that says nothing of cropping does not crop."""
    own = {name: values[name] for name in _CLIP if values.get(name) is not None}
    return {"crop_size": None, "do_normalize": values.get("do_normalize")} | own


def blurred(picture: Any) -> Any:
    """A picture of the same size in which nothing can be recognised: a few patches of its colours."""
    from PIL import Image

    scale = BLURRED_PX / max(picture.size)
    few = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize(few, Image.Resampling.BOX).resize(
        picture.size, Image.Resampling.BICUBIC
    )  # fmt: skip


def _kind(config: Mapping[str, Any]) -> str | None:
    for name in config.get("architectures") or ():
        if name == _OF_STABLE_DIFFUSION or name.endswith(_CLASSIFIER):
            return _OF_STABLE_DIFFUSION if name == _OF_STABLE_DIFFUSION else _CLASSIFIER
    return None


def _read_json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no object")
    return values
