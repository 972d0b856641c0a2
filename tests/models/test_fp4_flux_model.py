"""The FP4 loader: which engine it takes and why, and that its model draws."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from config.catalog import load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT
from models import bf16_flux_model, fp4_flux_model
from models.fp4 import nunchaku_engine, nvfp4_engine
from models.precision import profile_of
from models.types import Drawing, GenerationRequest, LoadOptions, OutputFormat, Stage

EMBEDDED = load_catalog()["embedded"]
SCHNELL = load_catalog()["flux-schnell"]
REQUEST = GenerationRequest.from_json(
    {
        field.name: None
        for field in dataclasses.fields(GenerationRequest)
    }
    | {
        "prompt": "a red balloon over green hills at noon",
        "model": "embedded",
        "backend": "flux",
        "width": 128,
        "height": 128,
        "num_inference_steps": 2,
        "guidance_scale": 0.0,
        "true_cfg_scale": 2.0,
        "seed": 1,
        "num_images": 1,
        "output_format": OutputFormat.PNG,
        "output_quality": 95,
        "tags": (),
        "loras": (),
    }
)  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(devices=("cpu",), models_dir=tmp_path, allow_download=False)


def draw(model: Any, seed: int, stages: list[Stage] | None = None) -> Any:
    (image,), _ = model.generate(
        [Drawing(request=REQUEST, seed=seed)],
        on_stage=(stages if stages is not None else []).append,
        on_step=lambda step, steps, preview: None,
    )
    return image


def test_profile_names_this_loader() -> None:
    assert profile_of("fp4").loader == "models.fp4_flux_model:load"
    assert set(profile_of("fp4").engines) == set(fp4_flux_model.ENGINES)


def test_auto_on_a_cpu_takes_nvfp4_and_says_why(options: LoadOptions) -> None:
    engine, reason = fp4_flux_model.choose_engine(SCHNELL, options)
    assert engine == "nvfp4" and "nunchaku cannot" in reason and len(reason) > 30


def test_auto_takes_nunchaku_where_it_runs_and_has_the_model(
    options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nunchaku_engine, "why_not", lambda options: None)
    assert fp4_flux_model.choose_engine(SCHNELL, options)[0] == "nunchaku"
    engine, reason = fp4_flux_model.choose_engine(EMBEDDED, options)
    assert engine == "nvfp4" and "embedded" in reason, "it has no checkpoint of this one"


def test_auto_passes_on_nunchakus_own_words(
    options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nunchaku_engine, "why_not", lambda options: "Hopper has no kernels in it")
    assert "Hopper has no kernels in it" in fp4_flux_model.choose_engine(SCHNELL, options)[1]


@pytest.mark.parametrize("engine", ["nvfp4", "nunchaku"])
def test_an_engine_that_was_asked_for_is_taken_and_never_exchanged(
    options: LoadOptions, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    loaded: list[str] = []
    for name, module in (("nvfp4", nvfp4_engine), ("nunchaku", nunchaku_engine)):
        monkeypatch.setattr(module, "load", lambda row, options, name=name: loaded.append(name))
    fp4_flux_model.load(EMBEDDED, dataclasses.replace(options, engine=engine))
    assert loaded == [engine]


def test_nunchaku_asked_for_on_a_cpu_is_refused(options: LoadOptions) -> None:
    with pytest.raises(ModelUnavailable, match="nunchaku|CPU|GPU"):
        fp4_flux_model.load(SCHNELL, dataclasses.replace(options, engine="nunchaku"))


def test_an_engine_there_is_none_of_is_named(options: LoadOptions) -> None:
    with pytest.raises(ModelUnavailable, match="'diffusers'.*auto or one of nvfp4, nunchaku"):
        fp4_flux_model.load(EMBEDDED, dataclasses.replace(options, engine="diffusers"))


def test_the_log_says_which_engine_and_why(
    options: LoadOptions, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="models.fp4"):
        fp4_flux_model.load(EMBEDDED, options)
    (record,) = [r for r in caplog.records if getattr(r, "action", "") == "engine"]
    assert "nvfp4" in record.getMessage() and "nunchaku cannot" in record.getMessage()


def test_the_embedded_model_draws_nearly_what_bf16_draws(options: LoadOptions) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        four, sixteen = fp4_flux_model.load(EMBEDDED, options), bf16_flux_model.load(
            EMBEDDED, options
        )
        stages: list[Stage] = []
        picture = draw(four, 5, stages)
        assert (four.engine, picture.size, picture.mode) == ("nvfp4", (128, 128), "RGB")
        assert "NVFP4" in four.compute and "FP32" in four.compute
        assert [stages[0], stages[-1]] == [Stage.ENCODING, Stage.DECODING]
        assert draw(four, 5).tobytes() == picture.tobytes(), "equal request, equal bytes"
        wanted = draw(sixteen, 5)
        difference = numpy.asarray(picture, dtype=float) - numpy.asarray(wanted, dtype=float)
        assert 0 < (difference**2).mean() < 255**2 / 10**3.6, "36 dB; but not the same picture"
        four.unload()
    finally:
        torch.set_num_threads(threads)


def test_the_api_can_ask_for_the_profile_without_torch() -> None:
    code = "import sys, models.precision; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
