"""A1111's text read back: ours, and what others write."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.types import LoraRef
from tests.utils.test_job_store import REQUEST
from utils.infotext import read_infotext
from utils.metadata import infotext

A1111 = """a red balloon,
over hills <lora:sketch:0.8> <lora:ink:-1>
Negative prompt: night, rain
and fog
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, \
Model hash: abcdef, Model: foreign, Denoising strength: 0.4, Lora hashes: "sketch: ab, ink: cd", Version: v1.9"""


def test_read_infotext_of_a1111() -> None:
    assert read_infotext(A1111) == {
        "prompt": "a red balloon,\nover hills",
        "negative_prompt": "night, rain\nand fog",
        "num_inference_steps": 20,
        "true_cfg_scale": 7.5,
        "seed": 42,
        "width": 512,
        "height": 768,
        "model": "foreign",
        "strength": 0.4,
        "loras": [{"name": "sketch", "weight": 0.8}, {"name": "ink", "weight": -1.0}],
    }


def test_read_infotext_gives_back_what_infotext_wrote() -> None:
    lora = LoraRef(name="ink", sha256="ab" * 32, weight=0.5)
    request = replace(REQUEST, guidance_scale=3.5, loras=(lora,), image="cd" * 32, strength=0.25)
    assert read_infotext(infotext(request, seed=9)) == {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": 3.5,
        "seed": 9,
        "width": request.width,
        "height": request.height,
        "model": request.model,
        "strength": 0.25,
        "loras": [{"name": "ink", "weight": 0.5}],
    }


@pytest.mark.parametrize("text", ["", "a balloon", "a balloon\nNegative prompt: fog"])
def test_read_infotext_without_parameters_has_the_words(text: str) -> None:
    found = read_infotext(text)
    assert found["prompt"] == text.partition("\n")[0]
    assert set(found) <= {"prompt", "negative_prompt"}


def test_read_infotext_leaves_out_what_makes_no_sense() -> None:
    found = read_infotext("a\nSteps: 4, Seed: many, Size: large, CFG scale: 1")
    assert found == {"prompt": "a", "num_inference_steps": 4, "guidance_scale": 1.0}


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text().map(lambda text: f"a\nSteps: 4, {text}"))
def test_read_infotext_of_any_text_has_a_prompt(text: str) -> None:
    assert isinstance(read_infotext(text)["prompt"], str)


@pytest.mark.parametrize("piece", ["a", " ", "a: ", 'a:"', "a,", "<lora:", "<lora:a:"])
def test_read_infotext_of_a_long_text_takes_no_long_time(piece: str) -> None:
    started = time.process_time()
    read_infotext("a\nSteps: 4, " + piece * (2**20 // len(piece)))
    assert time.process_time() - started < 5
