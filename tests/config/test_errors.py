"""What the end of a job says of the request's fields."""

from __future__ import annotations

import pytest

from config.errors import BadPicture, FieldError, JobFailed, NotFound


@pytest.mark.parametrize("field", ["image", "mask", "reference_images.0", "reference_images.3"])
@pytest.mark.parametrize("kind", [BadPicture, NotFound])
def test_job_failed_for_a_picture_names_its_field(field: str, kind: type[BadPicture]) -> None:
    error = kind.of(field, "the picture cannot be decoded: line 1\nline 2")
    failed = JobFailed(error.code, error.message)
    assert failed.fields == error.fields and failed.message == error.message
    assert failed.code == error.code


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("internal", "image: of our own"),
        ("oom", "1024x1024 px does not fit"),
        ("bad_file", "LoRA image: its file is damaged"),
        ("not_found", "LoRA mask: its file is not here"),
        ("bad_file", "prompt: a word"),
    ],
)
def test_job_failed_for_anything_else_names_no_field(code: str, message: str) -> None:
    fields: tuple[FieldError, ...] = JobFailed(code, message).fields
    assert fields == ()
