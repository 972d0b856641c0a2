"""What the ITI service's own environment variables do here beside naming our settings."""

from __future__ import annotations

import os

import pytest

from api import server
from config.catalog import load_catalog, with_defaults
from config.errors import ConfigurationError
from config.settings import load_settings


def test_value_that_is_wrong_is_told_under_its_name() -> None:
    with pytest.raises(ConfigurationError, match="SD_FLUX_DEFAULT_STEPS = '500'"):
        load_settings("bf16", {"SD_FLUX_DEFAULT_STEPS": "500"})


def test_token_reaches_the_hubs_library_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "before")
    monkeypatch.delenv("HF_TOKEN")
    settings = load_settings("bf16", {"SD_HUGGINGFACE_TOKEN": "hf_secret_4711"})
    assert "hf_secret_4711" not in repr(settings)
    server.give_hub_token(settings)
    assert os.environ["HF_TOKEN"] == "hf_secret_4711"


def test_token_that_is_there_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_their_own")
    server.give_hub_token(load_settings("bf16", {"SD_HUGGINGFACE_TOKEN": "hf_other"}))
    assert os.environ["HF_TOKEN"] == "hf_their_own"


def test_defaults_of_the_local_backend_are_its_rows_alone() -> None:
    catalog = load_catalog()
    changed = with_defaults(
        catalog, "flux-local", num_inference_steps=6, guidance_scale=2.0, max_size=1000
    )
    assert changed.ids == catalog.ids
    assert changed["flux-dev"] == catalog["flux-dev"]
    klein, base = changed["flux2-klein-4b"], changed["flux2-klein-base-4b"]
    assert (klein.num_inference_steps, klein.max_size, klein.default_width) == (6, 992, 992)
    assert klein.default_height == catalog["flux2-klein-4b"].default_height
    assert base.guidance_scale == 2.0


def test_defaults_that_are_not_set_change_nothing() -> None:
    catalog = load_catalog()
    same = with_defaults(
        catalog, "flux-local", num_inference_steps=0, guidance_scale=None, max_size=0
    )
    assert list(same) == list(catalog)


def test_limit_under_what_a_model_draws_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="SD_FLUX_MAX_IMAGE_SIZE"):
        with_defaults(
            load_catalog(), "flux-local", num_inference_steps=0, guidance_scale=None, max_size=100
        )
