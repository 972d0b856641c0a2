"""What BFL's cloud charges for a request, from the table in `config/bfl_prices.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from config.catalog import Catalog, ModelRow
from config.errors import ConfigurationError
from config.settings import ROOT
from models.bfl_request import RESOLUTIONS, nearest_resolution
from models.types import GenerationRequest

MEGAPIXEL = 2**20
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """US dollars of one model, in one of three ways; the file's head explains them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Usd | None = None
    first_megapixel: Usd | None = None
    further_megapixel: Usd | None = None
    input_megapixel: Usd | None = None
    resolutions: Mapping[str, Usd] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Price:
        megapixels = (self.first_megapixel, self.further_megapixel, self.input_megapixel)
        ways = [self.image is not None, None not in megapixels, self.resolutions is not None]
        if ways.count(True) != 1 or (not ways[1] and any(each is not None for each in megapixels)):
            raise ValueError("needs image, or all three of *_megapixel, or resolutions")
        if self.resolutions is not None and set(self.resolutions) != set(RESOLUTIONS):
            raise ValueError(f"resolutions needs {', '.join(RESOLUTIONS)}")
        return self

    def of_picture(self, width: int, height: int, input_pixels: Sequence[int] = ()) -> float:
        """One picture of a size in px, with pictures of so many pixels sent along."""
        if self.image is not None:
            return self.image
        if self.resolutions is not None:
            return self.resolutions[nearest_resolution(width, height)]
        assert self.first_megapixel is not None
        assert self.further_megapixel is not None and self.input_megapixel is not None
        further = max(0, math.ceil(width * height / MEGAPIXEL) - 1)
        sent = sum(max(1, math.ceil(pixels / MEGAPIXEL)) for pixels in input_pixels)
        return self.first_megapixel + further * self.further_megapixel + sent * self.input_megapixel

    def in_words(self, width: int, height: int) -> str:
        """The price of a picture of a size, and what changes it."""
        one = _dollars(self.of_picture(width, height))
        if self.further_megapixel is not None:
            more = _dollars(self.further_megapixel)
            return f"{one} at {width}x{height}, and {more} for each further megapixel, drawn or sent along"
        if self.resolutions is not None:
            least, most = min(self.resolutions.values()), max(self.resolutions.values())
            return f"{one} at {width}x{height}, and from {_dollars(least)} to {_dollars(most)} by its resolution"
        return one


def _dollars(usd: float) -> str:
    return f"${usd:.3f}".rstrip("0") if round(usd * 1000) % 10 else f"${usd:.2f}"


class Prices:
    """The table, by BFL's name of a model."""

    def __init__(self, prices: Mapping[str, Price], as_of: str) -> None:
        self._prices = dict(prices)
        self.as_of = as_of

    def of(self, row: ModelRow) -> Price | None:
        """The price of a model; None for one that is drawn here, which costs nothing."""
        return None if row.cloud is None else self._prices[row.source]

    def estimate(
        self,
        row: ModelRow,
        request: GenerationRequest,
        input_pixels: Sequence[int] | None = None,
    ) -> float:
        """US dollars for all pictures of a request, as far as can be told before.

        Pictures that are sent along count as one megapixel each where `input_pixels` does not tell.
        """
        price = self.of(row)
        if price is None:
            return 0.0
        if input_pixels is None:
            sent = [sha256 for sha256 in request.inputs if sha256 != request.mask]
            input_pixels = [MEGAPIXEL] * len(sent)
        one = price.of_picture(request.width, request.height, input_pixels)
        return round(one * request.num_images, 6)


def load_prices(catalog: Catalog, path: Path = ROOT / "config" / "bfl_prices.toml") -> Prices:
    """Read the table. Raises ConfigurationError for a wrong entry, or a model of the catalog without one."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        prices = {name: Price(**value) for name, value in table["prices"].items()}
        as_of = str(table["as_of"])
    except ValidationError as error:
        wrong = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise ConfigurationError(f"{path}: {wrong}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"{path}: needs as_of and a table [prices] of tables, one for each model"
        ) from error
    without = [row.source for row in catalog if row.cloud is not None and row.source not in prices]
    if without:
        raise ConfigurationError(f"{path}: has no price of {', '.join(without)}")
    return Prices(prices, as_of)
