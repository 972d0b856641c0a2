"""The catalog: the file that ships, rows that are wrong, and which model is the default."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.catalog import (
    MAX_STEPS,
    Catalog,
    choose_backend_defaults,
    choose_default,
    load_catalog,
)
from config.errors import ConfigurationError
from config.settings import ROOT

FILE = ROOT / "config" / "models.toml"
ROW = tomllib.loads(FILE.read_text(encoding="utf-8"))["embedded"]

Load = Callable[[dict[str, Any]], Catalog]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a catalog of one row, `tiny`."""

    def write(row: dict[str, Any]) -> Catalog:
        path = tmp_path / "models.toml"
        values = "".join(f"{key} = {_toml(value)}\n" for key, value in row.items())
        path.write_text(f"[tiny]\n{values}", encoding="utf-8")
        return load_catalog(path)

    return write


def _toml(value: Any) -> str:
    """JSON's way of writing a value is TOML's too, but for tables."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


# The file that ships


def test_catalog_file_loads_with_its_default_models() -> None:
    assert {"embedded", "flux-schnell"} <= set(load_catalog().ids)


@pytest.mark.parametrize("row", list(load_catalog()), ids=lambda row: row.id)
def test_catalog_row_defaults_lie_within_its_limits(row) -> None:
    assert row.min_size <= row.default_width <= row.max_size
    assert row.min_size <= row.default_height <= row.max_size
    assert 1 <= row.num_inference_steps <= MAX_STEPS
    assert 0 <= row.guidance_scale <= row.max_guidance_scale and 0 <= row.true_cfg_scale <= 20
    assert row.device in ("any", "gpu", "apple")
    assert all(need > 0 for need in row.memory_gib.values())


def test_catalog_embedded_model_is_a_folder_of_the_project() -> None:
    folder = load_catalog()["embedded"].folder
    assert folder is not None and (folder / "model_index.json").is_file()


def test_catalog_model_from_the_hub_has_no_folder() -> None:
    assert load_catalog()["flux-schnell"].folder is None


# Wrong rows


def test_catalog_row_is_read_as_written(load: Load) -> None:
    row = load(ROW)["tiny"]
    assert (row.id, row.title, row.min_size) == ("tiny", ROW["title"], ROW["min_size"])


OPTIONAL = {"example_prompts", "quick_cpu_decoder"}


@pytest.mark.parametrize("key", [key for key in ROW if key not in OPTIONAL])
def test_catalog_missing_key_is_named_with_its_row(load: Load, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[tiny\].*{key}"):
        load({name: value for name, value in ROW.items() if name != key})


def test_catalog_unknown_key_is_named_with_its_row(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"\[tiny\].*min_sise"):
        load(ROW | {"min_sise": 1})


@pytest.mark.parametrize("key", ["default_width", "default_height", "min_size", "max_size"])
def test_catalog_size_that_is_no_multiple_is_named(load: Load, key: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[tiny\].*{key}"):
        load(ROW | {key: ROW[key] + 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_size", "128"),
        ("max_size", 512.5),
        ("default_width", True),
        ("num_inference_steps", "4"),
        ("guidance_scale", "3.5"),
        ("guidance", "yes"),
        ("memory_gib", 5),
        ("memory_gib", {"bf16": "0.6"}),
        ("title", 5),
        ("device", "tpu"),
        ("example_prompts", "one"),
        ("default_width", 1024),
        ("num_inference_steps", 0),
        ("title", ""),
        ("source", ""),
        ("guidance_scale", -1.0),
        ("guidance_scale", 20.5),
        ("true_cfg_scale", 21.0),
        ("max_sequence_length", 0),
    ],
)
def test_catalog_wrong_value_is_named_with_its_row(load: Load, key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"\[tiny\].*{key}"):
        load(ROW | {key: value})


def test_catalog_number_that_is_none_is_named_with_its_row(tmp_path: Path, load: Load) -> None:
    load(ROW)
    path = tmp_path / "models.toml"
    text = path.read_text(encoding="utf-8").replace("guidance_scale = 0.0", "guidance_scale = nan")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"\[tiny\].*guidance_scale.*finite"):
        load_catalog(path)


@pytest.mark.parametrize("text", ["[tiny", "tiny = 5", "\x00"])
def test_catalog_that_is_no_table_of_rows_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="models.toml"):
        load_catalog(path)


def test_catalog_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none.toml"):
        load_catalog(tmp_path / "none.toml")


# The default


def test_default_without_gpu_is_the_embedded_model_and_says_why() -> None:
    default = choose_default(load_catalog(), "auto", (), "no NVIDIA driver answers")
    assert default.id == "embedded" and "no NVIDIA driver answers" in default.reason


def test_default_with_gpu_is_schnell_and_says_why() -> None:
    default = choose_default(load_catalog(), "auto", ("NVIDIA H200",), "")
    assert default.id == "flux-schnell" and "NVIDIA H200" in default.reason


@pytest.mark.parametrize("gpus", [(), ("NVIDIA H200",)])
def test_default_that_is_configured_wins(gpus: tuple[str, ...]) -> None:
    default = choose_default(load_catalog(), "flux-dev", gpus, "")
    assert default.id == "flux-dev" and "FLUX_MODEL" in default.reason


def test_default_that_the_catalog_lacks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="FLUX_MODEL.*no-such.*embedded"):
        choose_default(load_catalog(), "no-such", (), "")


@pytest.mark.parametrize(
    ("gpus", "lacking"), [((), "embedded"), (("NVIDIA H200",), "flux-schnell")]
)
def test_default_whose_row_was_taken_out_is_refused_with_what_there_is(
    gpus: tuple[str, ...], lacking: str
) -> None:
    rest = Catalog({row.id: row for row in load_catalog() if row.id != lacking})
    with pytest.raises(ConfigurationError, match=f"no row {lacking}.*FLUX_MODEL.*flux-dev"):
        choose_default(rest, "auto", gpus, "")


# The default of a backend


@pytest.mark.parametrize(
    ("value", "model"),
    [
        ("sdxl-base", "sdxl-base"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl-base"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5"),
        ("StabilityAI/Stable-Diffusion-2-1 ", "stable-diffusion-2-1"),
    ],
)
def test_backend_default_is_named_by_its_id_or_its_name_on_the_hub(value: str, model: str) -> None:
    assert choose_backend_defaults(load_catalog(), {"sd": ("A", value)}) == {"sd": model}


def test_backend_default_that_nobody_chose_is_left_open() -> None:
    assert choose_backend_defaults(load_catalog(), {"sd": ("A", "auto"), "mflux": ("B", "")}) == {}


def test_backend_default_of_another_backend_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="SD_MODEL_ID.*no such model.*sdxl-base"):
        choose_backend_defaults(load_catalog(), {"sd": ("SD_MODEL_ID", "flux-schnell")})


def test_backend_names_on_the_hub_mean_one_model_of_it() -> None:
    seen: dict[tuple[str, str], str] = {}
    for row in load_catalog():
        for name in (row.id, row.source, *row.other_sources):
            assert seen.setdefault((row.backend, name.casefold()), row.id) == row.id
