"""Every yes of docs/models.md, drawn: on the embedded model, or on tiny weights of the row's real classes.

mflux's rows are drawn by its stand-in commands, those of BFL's cloud are asked for as BFL's document says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from config.abilities import ABILITIES, can
from config.catalog import ModelRow, load_catalog
from models import bf16_flux_model, fp4_flux_model
from models.bfl_request import body_of
from models.families import flux1_kontext, mflux, mflux_command
from models.fp4 import lowrank
from models.fp4.quantize import Job, quantize_folder
from models.precision import profile_of
from models.types import LoadOptions, LoraRef
from scripts.fake_bfl import FACTS, faults_of
from tests import lora_files, mflux_stand_in
from tests.cloud import cloud_request
from tests.models.flux1_drawing import draw, threads
from tests.models.tiny_drawing import Tiny, gradient
from tests.tiny_models import tiny_model

CATALOG = load_catalog()
SMALL = {"default_width": 128, "default_height": 128}  # of the model that ships
LOADERS = {"bf16": bf16_flux_model.load, "fp4": fp4_flux_model.load}


def is_of_diffusers(row: ModelRow) -> bool:
    return row.cloud is None and row.device != "apple"


def cases(wanted: Any) -> list[Any]:
    """Every (row, ability) that is a yes, the rows together, so that each is loaded once."""
    return [
        pytest.param(row, ability, id=f"{row.id}-{ability}")
        for row in CATALOG
        if wanted(row)
        for ability in ABILITIES
        if can(row, ability)
    ]


class Models:
    """The rows' models, each loaded when it is asked for; those of one row at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._row: ModelRow | None = None
        self._loaded: dict[str, Tiny] = {}
        self._texts: dict[tuple[int, int], numpy.ndarray] = {}

    def of_text(self, tiny: Tiny, seed: int = 3) -> numpy.ndarray:
        """The picture of the text alone, with what a request must bring: drawn once for all that compare with it."""
        key = (id(tiny), seed)
        if key not in self._texts:
            self._texts[key] = shot(tiny, seed=seed)
        return self._texts[key]

    def get(self, row: ModelRow, precision: str) -> Tiny:
        if self._row is not row:
            self._loaded.clear()
            self._texts.clear()
            self._row = row
        if precision not in self._loaded:
            self._loaded[precision] = self._load(row, precision)
        return self._loaded[precision]

    def lora_folder(self, row: ModelRow) -> Path:
        folder = self._folder / row.id / "loras"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _load(self, row: ModelRow, precision: str) -> Tiny:
        folder = self._folder / row.id / "model"
        tiny = row.model_copy(update=SMALL) if row.folder else tiny_model(row.id, folder)
        options = LoadOptions(
            devices=("cpu",),
            models_dir=self._folder / row.id,
            allow_download=False,
            loras_dir=self.lora_folder(row),
        )
        if precision == "fp4" and row.folder is None:
            _make_four_bits(tiny, folder)
        return Tiny(tiny, folder, LOADERS[precision](tiny, options))


def _make_four_bits(row: ModelRow, folder: Path) -> None:
    """The copy that a service would make at the first use, in the least time: how good it is, others test."""
    job = Job(
        source=folder,
        out=folder.with_name(f"{folder.name}-fp4"),
        row=row,
        prompts=tuple(f"{number} cats" for number in range(8)),
        rank=2,
        complete=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowrank, "ROUNDS", 1)
        quantize_folder(job)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with threads(1):
        yield Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("row", "ability"), cases(is_of_diffusers))
def test_model_can_what_the_table_says(models: Models, row: ModelRow, ability: str) -> None:
    tiny = models.get(row, "fp4" if ability == "fp4" else "bf16")
    CHECKS[ability](models, tiny, row)


def brought(tiny: Tiny) -> dict[str, Any]:
    """What a request must bring beside its text."""
    size = (tiny.row.default_width, tiny.row.default_height)
    pictures: dict[str, Any] = {"image": gradient(*size), "mask": mask_of(size)}
    return {way: pictures[way] for way in tiny.row.requires}


def mask_of(size: tuple[int, int]) -> Any:
    from PIL import Image

    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def shot(tiny: Tiny, **changes: Any) -> numpy.ndarray:
    few = {"num_inference_steps": min(2, tiny.row.num_inference_steps)}
    picture = tiny.draw(**few | brought(tiny) | changes)
    assert picture.size == (tiny.row.default_width, tiny.row.default_height)
    return numpy.asarray(picture.convert("RGB"), dtype=int)


def draws_texts(models: Models, tiny: Tiny, row: ModelRow) -> None:
    assert (models.of_text(tiny) != models.of_text(tiny, seed=4)).any()


def draws_from_an_image(models: Models, tiny: Tiny, row: ModelRow) -> None:
    size = (tiny.row.default_width, tiny.row.default_height)
    one = shot(tiny, image=gradient(*size), strength=0.5)
    assert (one != shot(tiny, image=gradient(*size, turned=True), strength=0.5)).any()


def keeps_what_is_outside_of_a_mask(models: Models, tiny: Tiny, row: ModelRow) -> None:
    size = (tiny.row.default_width, tiny.row.default_height)
    image = gradient(*size)
    after = shot(tiny, image=image, mask=mask_of(size), strength=1.0)
    before = numpy.asarray(image, dtype=int)
    assert (after[:, : size[0] // 2] == before[:, : size[0] // 2]).all()
    assert (after[:, size[0] // 2 :] != before[:, size[0] // 2 :]).any()


def looks_at_references(models: Models, tiny: Tiny, row: ModelRow) -> None:
    without = models.of_text(tiny)
    most = tiny.row.max_references
    pictures = tuple(gradient(64, 64, turned=bool(index % 2)) for index in range(most))
    with pytest.MonkeyPatch.context() as patch:
        # A megapixel for each reference of Kontext's, in truth; that it is, its own tests show.
        patch.setattr(flux1_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(128, 96), (96, 128)])
        assert (shot(tiny, references=pictures[:1]) != without).any()
        assert (shot(tiny, references=pictures) != without).any()


def takes_a_lora(models: Models, tiny: Tiny, row: ModelRow) -> None:
    ref = lora_for(tiny, models.lora_folder(row))
    without = models.of_text(tiny)
    [applied] = tiny.model.use_loras((ref,))
    assert applied.matched_keys == 2 and applied.unmatched_keys == 0
    assert (shot(tiny) != without).any()
    tiny.model.use_loras(())
    assert (shot(tiny) == without).all()


# What such a file says of itself, where its layers do not show it.
SAID_BY_THE_FILE = {
    "sdxl": {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
    "flux2": {"modelspec.architecture": "flux-2-klein-4b/lora"},
}


def lora_for(tiny: Tiny, folder: Path) -> LoraRef:
    """For one layer of the model's denoiser, strong enough to be seen."""
    denoiser = tiny.model._part(tiny.model.DENOISER)
    name, layer = next(
        (name, layer)
        for name, layer in denoiser.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.endswith("to_q")
    )
    generator = torch.Generator().manual_seed(1)
    key = f"{tiny.model.DENOISER}.{name}"
    path = folder / "new"
    save_file(
        {
            f"{key}.lora_A.weight": torch.randn(4, layer.in_features, generator=generator),
            f"{key}.lora_B.weight": torch.randn(layer.out_features, 4, generator=generator),
        },
        path,
        metadata=SAID_BY_THE_FILE.get(tiny.row.family),
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(folder / f"{sha256}.safetensors")
    return LoraRef(name="strong", sha256=sha256, weight=1.0)


CHECKS = {
    "text": draws_texts,
    "image": draws_from_an_image,
    "mask": keeps_what_is_outside_of_a_mask,
    "references": looks_at_references,
    "lora": takes_a_lora,
    "fp4": draws_texts,
    "bf16": draws_texts,
    "cpu": draws_texts,
}


# mflux: its commands' stand-in on PATH


# One layer of each architecture, as a LoRA names it.
LAYER_OF = {
    "flux1": lora_files.FLUX1,
    "flux2": lora_files.FLUX2,
    "z-image": {"lora_unet_layers_0_attention_to_q": (3840, 3840)},
}


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mflux_command, "is_apple_silicon", lambda: True)
    mflux_stand_in.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "ability"),
    [
        case
        for case in cases(lambda row: row.device == "apple")
        if case.values[1] in ("text", "image", "lora")
    ],
)
def test_mflux_can_what_the_table_says(mac: Path, row: ModelRow, ability: str) -> None:
    options = LoadOptions(devices=("cpu",), models_dir=mac, allow_download=False, loras_dir=mac)
    tiny = Tiny(row, mac, mflux.load(row, options, profile_of("bf16")))
    small = {"width": 256, "height": 256, "num_inference_steps": 2}
    one, other = gradient(256, 256), gradient(256, 256, turned=True)
    if ability == "text":
        first, second = draw(tiny.model, *(tiny.drawing(seed=seed, **small) for seed in (1, 2)))
        assert first.tobytes() != second.tobytes()
    elif ability == "lora":
        data = lora_files.lora(0.5, LAYER_OF[row.architecture])
        sha256 = hashlib.sha256(data).hexdigest()
        (mac / f"{sha256}.safetensors").write_bytes(data)
        ref = LoraRef(name="mine", sha256=sha256, weight=1.0)
        tiny.model.use_loras((ref,))
        draw(tiny.model, tiny.drawing(**small | {"loras": (ref,)}))
        [applied] = tiny.model.use_loras((ref,))  # as the command has told
        assert applied.matched_keys == 2
    else:
        [first] = draw(tiny.model, tiny.drawing(image=one, **small | {"strength": 0.5}))
        [second] = draw(tiny.model, tiny.drawing(image=other, **small | {"strength": 0.5}))
        assert first.tobytes() != second.tobytes()


# BFL's cloud: as its document says


@pytest.mark.parametrize(("row", "ability"), cases(lambda row: row.cloud is not None))
def test_cloud_is_asked_for_what_the_table_says(row: ModelRow, ability: str) -> None:
    pictures = [b"picture"] if ability != "text" or row.requires else []
    mask = b"mask" if "mask" in row.requires else None
    request = cloud_request(
        model=row.id,
        width=row.default_width,
        height=row.default_height,
        num_inference_steps=row.num_inference_steps,
        guidance_scale=row.guidance_scale,
    )
    body = body_of(row, request, 7, pictures, mask)
    assert faults_of(FACTS["models"][row.source], body) == []
    sent = [field for field in body if field not in body_of(row, request, 7, [], None)]
    assert len(sent) == len(pictures) + (mask is not None)
