"""What happens to flagged pictures and previews, with a checker that is made up."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from config.errors import ModelUnavailable
from models.safety import Weights
from utils.worker.inspection import PREVIEW_SHARE, Inspection, NotSafe

WEIGHTS = Weights(folder=Path("nowhere"), name="somebody/judge")


class RedIsNot:
    """Flags a picture by the pixel in its corner."""

    def __init__(self, weights: Weights) -> None:
        self.looks = 0

    def is_flagged(self, picture: Image.Image) -> bool:
        self.looks += 1
        red, green, blue = picture.getpixel((0, 0))
        return red > green + blue


def striped(colour: str) -> Image.Image:
    """A picture in which something can be seen."""
    picture = Image.new("RGB", (64, 64), colour)
    for x in range(0, 64, 8):
        picture.paste("black", (x + 4, 0, x + 8, 64))
    return picture


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def contrast(picture: Image.Image) -> int:
    """Between a stripe and its neighbour."""
    bright, dark = picture.getpixel((33, 32)), picture.getpixel((38, 32))
    return max(abs(one - other) for one, other in zip(bright, dark, strict=True))


def contrast_of(data: bytes) -> int:
    return contrast(Image.open(io.BytesIO(data)))


def test_picture_that_is_safe_is_stored_as_it_is() -> None:
    picture = striped("blue")
    verdict = Inspection(WEIGHTS, "flag", RedIsNot).judge(picture)
    assert verdict.picture is picture and verdict.is_flagged is False


def test_picture_that_is_flagged_is_stored_blurred() -> None:
    verdict = Inspection(WEIGHTS, "flag", RedIsNot).judge(striped("red"))
    assert verdict.is_flagged is True
    assert contrast(striped("red")) == 255 and contrast(verdict.picture) < 60


def test_picture_that_is_flagged_is_not_given_out_where_such_are_blocked() -> None:
    inspection = Inspection(WEIGHTS, "block", RedIsNot)
    with pytest.raises(NotSafe, match="somebody/judge.*another prompt or seed") as caught:
        inspection.judge(striped("red"))
    assert caught.value.code == "nsfw_blocked"
    assert inspection.judge(striped("blue")).is_flagged is False


def test_nobody_looks_without_weights() -> None:
    picture = striped("red")
    inspection = Inspection(None, "flag", RedIsNot)
    verdict = inspection.judge(picture)
    assert verdict.picture is picture and verdict.is_flagged is None
    assert inspection.preview("a", b"anything") == b"anything" and inspection.name is None


def test_nothing_is_given_out_unseen_where_flagged_pictures_are_blocked() -> None:
    inspection = Inspection(None, "block", RedIsNot)
    for look in (inspection.prepare, lambda: inspection.judge(striped("blue"))):
        with pytest.raises(ModelUnavailable, match="weights of the safety checker are gone"):
            look()


def test_nothing_is_given_out_unseen_where_a_checker_is_needed() -> None:
    inspection = Inspection(None, "flag", RedIsNot, is_needed=True)
    picture = striped("blue")
    for look in (
        inspection.prepare,
        lambda: inspection.judge(picture),
        lambda: inspection.preview("a", jpeg(picture)),
    ):
        with pytest.raises(
            ModelUnavailable, match="CHECKER is flag.*gone.*start the service again"
        ):
            look()


def test_checker_that_cannot_be_read_lets_nothing_through() -> None:
    def damaged(weights: Weights) -> RedIsNot:
        raise ModelUnavailable("damaged")

    with pytest.raises(ModelUnavailable, match="damaged"):
        Inspection(WEIGHTS, "flag", damaged).judge(striped("blue"))


def test_checker_is_read_once() -> None:
    read: list[Weights] = []

    def load(weights: Weights) -> RedIsNot:
        read.append(weights)
        return RedIsNot(weights)

    inspection = Inspection(WEIGHTS, "flag", load)
    assert read == []
    inspection.judge(striped("blue"))
    inspection.judge(striped("red"))
    assert read == [WEIGHTS]


def test_preview_that_is_safe_is_shown_as_it_is() -> None:
    data = jpeg(striped("blue"))
    assert Inspection(WEIGHTS, "flag", RedIsNot).preview("a", data) == data


@pytest.mark.parametrize("mode", ["flag", "block"])
def test_preview_that_is_flagged_is_shown_blurred(mode: str) -> None:
    data = jpeg(striped("red"))
    shown = Inspection(WEIGHTS, mode, RedIsNot).preview("a", data)
    assert contrast_of(data) > 200 and contrast_of(shown) < 60


def test_previews_after_a_flagged_one_are_blurred_for_this_job_alone() -> None:
    inspection = Inspection(WEIGHTS, "flag", RedIsNot)
    inspection.preview("a", jpeg(striped("red")))
    safe = jpeg(striped("blue"))
    assert contrast_of(inspection.preview("a", safe)) < 60
    assert inspection.preview("b", safe) == safe
    inspection.forget(["a"])
    assert inspection.preview("a", safe) == safe


def test_previews_come_as_seldom_as_looking_at_them_allows() -> None:
    inspection = Inspection(WEIGHTS, "flag", RedIsNot)
    assert inspection.preview_seconds == 0.0
    inspection.preview("a", jpeg(striped("blue")))
    assert 0 < inspection.preview_seconds < 10 / PREVIEW_SHARE
