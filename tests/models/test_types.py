"""What travels between the rooms survives its way through JSON."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ConfigurationError
from models.precision import profile_of
from models.types import GenerationRequest, GenerationResult, ImageFile, OutputFormat

TEXT = st.text(max_size=20)
requests = st.builds(
    GenerationRequest,
    prompt=TEXT,
    negative_prompt=st.none() | TEXT,
    model=TEXT,
    backend=TEXT,
    width=st.integers(16, 4096),
    height=st.integers(16, 4096),
    num_inference_steps=st.integers(1, 100),
    guidance_scale=st.floats(0, 20),
    true_cfg_scale=st.floats(0, 20),
    seed=st.integers(0, 2**53 - 1),
    num_images=st.integers(1, 8),
    output_format=st.sampled_from(OutputFormat),
    output_quality=st.integers(1, 100),
    tags=st.lists(TEXT, max_size=3).map(tuple),
)


@given(request=requests)
def test_request_comes_back_from_json_as_it_was(request: GenerationRequest) -> None:
    assert GenerationRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_result_comes_back_from_json_as_it_was() -> None:
    image = ImageFile(filename="a-0.png", seed=1, width=2, height=3, size_bytes=4)
    result = GenerationResult(
        images=(image,), engine="e", precision="bf16", device="cpu", timings_ms={"total": 1.5}
    )
    assert GenerationResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_value_cannot_be_changed() -> None:
    image = ImageFile(filename="a-0.png", seed=1, width=2, height=3, size_bytes=4)
    with pytest.raises(FrozenInstanceError):
        image.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("output_format", "media_type", "suffix"),
    [("png", "image/png", ".png"), ("jpeg", "image/jpeg", ".jpg"), ("webp", "image/webp", ".webp")],
)
def test_output_format_has_its_media_type_and_suffix(
    output_format: str, media_type: str, suffix: str
) -> None:
    found = OutputFormat(output_format)
    assert (found.media_type, found.suffix) == (media_type, suffix)


def test_profile_of_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="fp8.*bf16, fp4"):
        profile_of("fp8")
