"""What BFL's cloud charges: the table that ships, BFL's own examples, and tables that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.catalog import load_catalog
from config.errors import ConfigurationError
from config.settings import ROOT
from models.bfl_prices import Price, Prices, load_prices
from tests.cloud import cloud_request

CATALOG = load_catalog()
TABLE = (ROOT / "config" / "bfl_prices.toml").read_text(encoding="utf-8")
MP = 2**20


@pytest.fixture(scope="module")
def prices() -> Prices:
    return load_prices(CATALOG)


@pytest.mark.parametrize(
    ("model", "width", "height", "sent", "usd"),
    [
        ("flux-2-pro", 1024, 1024, (), 0.03),
        ("flux-2-pro", 1920, 1072, (), 0.045),  # BFL: output_mp 1.98, cost 4.5
        ("flux-2-pro", 1024, 1024, (MP,), 0.045),  # BFL: editing from 0.045
        ("flux-2-pro", 2048, 2048, (), 0.075),
        ("flux-2-max", 1024, 1024, (MP,), 0.10),
        ("flux-2-klein-4b", 1024, 2048, (), 0.015),  # BFL: 2 megapixels are 0.014 + 0.001
        ("flux-2-klein-4b", 64, 64, (), 0.014),
        ("flux-2-pro", 1024, 1024, (3 * MP, 10), 0.03 + 4 * 0.015),
        ("flux-kontext-max", 2048, 512, (MP, MP), 0.08),
        ("flux-3-image", 1024, 1024, (), 0.048),
        ("flux-3-image", 2048, 2048, (), 0.10),
    ],
)
def test_price_of_a_picture(
    prices: Prices, model: str, width: int, height: int, sent: tuple[int, ...], usd: float
) -> None:
    price = prices.of(CATALOG[f"bfl/{model}"])
    assert price is not None
    assert price.of_picture(width, height, sent) == pytest.approx(usd)


def test_estimate_counts_every_picture_and_what_is_sent_along(prices: Prices) -> None:
    row = CATALOG["bfl/flux-2-pro"]
    request = cloud_request(model=row.id, width=1024, height=1024, num_images=3)
    assert prices.estimate(row, request) == pytest.approx(0.09)
    with_pictures = cloud_request(
        model=row.id, width=1024, height=1024, reference_images=("a" * 64, "b" * 64)
    )
    assert prices.estimate(row, with_pictures) == pytest.approx(0.06)
    assert prices.estimate(row, with_pictures, [4 * MP, MP]) == pytest.approx(0.105)


def test_estimate_a_mask_costs_nothing(prices: Prices) -> None:
    row = CATALOG["bfl/flux-pro-1.0-fill"]
    request = cloud_request(model=row.id, image="a" * 64, mask="b" * 64, strength=1.0)
    assert prices.estimate(row, request) == pytest.approx(0.05)


def test_estimate_of_a_model_here_is_nothing(prices: Prices) -> None:
    row = CATALOG["embedded"]
    assert prices.of(row) is None
    assert prices.estimate(row, cloud_request(model=row.id, backend="flux")) == 0.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (TABLE.replace("flux-2-max =", "flux-2-mix ="), "no price of flux-2-max"),
        (TABLE.replace("{ image = 0.04 }", "{ image = -1 }"), "greater than or equal"),
        (TABLE.replace("{ image = 0.04 }", "{ first_megapixel = 1 }"), "all three"),
        (TABLE.replace('"1.5k" = 0.07, ', ""), "resolutions needs"),
        (TABLE.replace("{ image = 0.04 }", "4"), r"\[prices\]"),
        (TABLE.replace("as_of", "as_off"), "as_of"),
        ("prices = [", "bfl_prices.toml"),
    ],
)
def test_prices_that_are_wrong_are_refused_by_name(tmp_path: Path, wrong: str, words: str) -> None:
    path = tmp_path / "bfl_prices.toml"
    path.write_text(wrong, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=words):
        load_prices(CATALOG, path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("flux-kontext-pro", "$0.04"),
        (
            "flux-2-pro",
            "$0.03 at 1024x1024, and $0.015 for each further megapixel, drawn or sent along",
        ),
        ("flux-3-image", "$0.048 at 1024x1024, and from $0.041 to $0.607 by its resolution"),
    ],
)
def test_price_in_words(prices: Prices, model: str, words: str) -> None:
    price = prices.of(CATALOG[f"bfl/{model}"])
    assert price is not None and price.in_words(1024, 1024) == words


def test_price_of_one_way_only() -> None:
    with pytest.raises(ValueError, match="all three"):
        Price(image=1.0, input_megapixel=1.0)
