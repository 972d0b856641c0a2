"""Which models are drawn with where none may be fetched: what is looked for, how often, and what is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from config.catalog import ModelRow, load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT, ModelSettings, load_settings
from models.hub import on_disk
from models.precision import profile_of
from tests.utils.test_gpu_manager import resolver
from utils import model_files
from utils.model_files import BELIEVED_SECONDS, WHOLE_SECONDS, ModelFiles
from utils.requests import RequestResolver, Wanted

CATALOG = load_catalog()
SD, SCHNELL = CATALOG["stable-diffusion-v1-5"], CATALOG["flux-schnell"]
EMBEDDED = ROOT / "models" / "embedded"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def files(
    folder: Path, precision: str = "bf16", *, time: Time | None = None, may_fetch: bool = False
) -> ModelFiles:
    models = ModelSettings(models_dir=folder, allow_download=may_fetch)
    return ModelFiles(models, profile_of(precision), time or Time())


def put(folder: Path, source: str, *, without: str = "") -> Path:
    """A whole pipeline in the Hub's cache, but for a part."""
    cached = folder / f"models--{source.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    left_out = shutil.ignore_patterns(without) if without else None
    return shutil.copytree(EMBEDDED, cached / "snapshots" / "abc", ignore=left_out)


def test_model_that_may_be_fetched_is_not_looked_for(tmp_path: Path) -> None:
    assert files(tmp_path, may_fetch=True).why_not(SD) is None


def test_model_that_is_not_here_says_why_and_how_to_get_it(tmp_path: Path) -> None:
    reason = files(tmp_path).why_not(SD)
    assert reason == (
        "stable-diffusion-v1-5 is not on this machine (it was never fetched), and downloads are off "
        "(FLUX_ALLOW_DOWNLOAD); `python -m scripts.download_models stable-diffusion-v1-5` fetches it"
    )


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_hub_that_may_not_be_asked_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    reason = files(tmp_path, may_fetch=True).why_not(SD) or ""
    assert "HF_HUB_OFFLINE is set" in reason and "unset HF_HUB_OFFLINE" in reason


@pytest.mark.parametrize("value", ["", "0", "1", "on", "Yes", "TRUE", "no", "2"])
def test_offline_is_what_huggingface_hub_takes_for_it(value: str) -> None:
    from huggingface_hub import constants

    assert on_disk.is_offline({"HF_HUB_OFFLINE": value}) is constants._is_true(value)


@pytest.mark.parametrize("source", [SD.source, *SD.other_sources])
def test_model_by_any_of_its_names_is_here(tmp_path: Path, source: str) -> None:
    put(tmp_path, source)
    assert files(tmp_path).why_not(SD) is None


def test_model_without_a_part_that_is_needed_names_it(tmp_path: Path) -> None:
    put(tmp_path, SD.source, without="vae")
    assert "not on this machine (vae)" in (files(tmp_path).why_not(SD) or "")


@pytest.mark.parametrize("index", ['{"weight', "[]", "{}", '{"weight_map": 3}'])
def test_model_whose_parts_index_is_damaged_names_the_part(tmp_path: Path, index: str) -> None:
    folder = put(tmp_path, SD.source)
    (folder / "transformer" / "model.safetensors.index.json").write_text(index)
    assert "not on this machine (transformer)" in (files(tmp_path).why_not(SD) or "")


def test_model_without_its_own_safety_checker_is_here_as_for_the_loader(tmp_path: Path) -> None:
    folder = put(tmp_path, SD.source)
    index = folder / "model_index.json"
    part = '{"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],'
    index.write_text(index.read_text().replace("{", part, 1))
    assert files(tmp_path).why_not(SD) is None
    assert on_disk.files_of(SD, tmp_path, "bf16", tmp_path)[0]


def test_model_of_the_project_is_looked_for_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = CATALOG["embedded"]
    assert files(tmp_path).why_not(row) is None
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(on_disk, "ROOT", tmp_path)
    assert "the checkout's files" in (files(tmp_path).why_not(row) or "")


def test_model_of_the_cloud_has_no_files(tmp_path: Path) -> None:
    assert files(tmp_path).why_not(CATALOG["bfl/flux-2-pro"]) is None


def test_four_bit_copy_is_enough_without_the_original(tmp_path: Path) -> None:
    assert files(tmp_path, "fp4").why_not(SCHNELL) is not None
    shutil.copytree(ROOT / "models" / "embedded-fp4", tmp_path / "fp4" / SCHNELL.id)
    assert files(tmp_path, "fp4").why_not(SCHNELL) is None
    assert files(tmp_path).why_not(SCHNELL) is not None


def test_checkpoint_of_nunchaku_stands_for_the_transformer(tmp_path: Path) -> None:
    put(tmp_path, SCHNELL.source, without="transformer")
    assert "(transformer)" in (files(tmp_path, "fp4").why_not(SCHNELL) or "")
    put(tmp_path, "nunchaku-tech/nunchaku-flux.1-schnell")
    assert files(tmp_path, "fp4").why_not(SCHNELL) is None
    assert files(tmp_path).why_not(SCHNELL) is not None


def test_program_takes_what_it_needs_of_the_cache(tmp_path: Path) -> None:
    row = CATALOG["mflux-schnell"]
    assert files(tmp_path).why_not(row) is not None
    (put(tmp_path, row.source) / "model_index.json").unlink()  # which mflux does not fetch
    assert files(tmp_path).why_not(row) is None


def test_look_is_believed_for_some_seconds_and_then_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, looks, look = Time(), [], on_disk.lacks

    def counting(row: ModelRow, *rest: object) -> list[str]:
        looks.append(row.id)
        return look(row, *rest)

    monkeypatch.setattr(model_files.on_disk, "lacks", counting)
    there = files(tmp_path, time=time)
    for _ in range(100):
        assert there.why_not(SD) is not None
    assert looks == [SD.id]
    put(tmp_path, SD.source)
    time.now += BELIEVED_SECONDS + 0.1
    assert there.why_not(SD) is None and looks == [SD.id] * 2


def test_model_that_was_here_is_believed_longer_and_then_looked_for(tmp_path: Path) -> None:
    time = Time()
    there = files(tmp_path, time=time)
    put(tmp_path, SD.source)
    assert there.why_not(SD) is None
    shutil.rmtree(tmp_path)
    time.now += WHOLE_SECONDS - 1
    assert there.why_not(SD) is None
    time.now += 2
    assert "never fetched" in (there.why_not(SD) or "")


def test_folder_that_cannot_be_read_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_files.on_disk, "lacks", refused)
    assert "(its folder cannot be read: Permission denied)" in (files(tmp_path).why_not(SD) or "")


# In the resolver


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RequestResolver, Time]:
    """A resolver of a machine with room for all models and files of none but the embedded one."""
    monkeypatch.setattr("utils.main_memory.total_gib", lambda: 256.0)
    made, time = resolver(), Time()
    made._files = files(tmp_path, time=time)
    return made, time


def test_request_for_a_model_that_is_not_here_is_refused_with_what_is(
    offline: tuple[RequestResolver, Time],
) -> None:
    with pytest.raises(ModelUnavailable, match="download_models stable-diffusion-v1-5") as caught:
        offline[0].resolve(Wanted(prompt="a", model=SD.id))
    assert [error.field for error in caught.value.fields] == ["model"]
    assert caught.value.message.endswith("models that run here: embedded")
    assert caught.value.retry_after_seconds


def test_request_is_taken_after_a_download_without_a_restart(
    offline: tuple[RequestResolver, Time], tmp_path: Path
) -> None:
    made, time = offline
    assert made.why_not_here(SD) is not None
    put(tmp_path, SD.source)
    time.now += BELIEVED_SECONDS + 0.1
    assert made.resolve(Wanted(prompt="a", backend="sd")).model == SD.id


def test_backend_alone_means_its_first_model_that_is_here(
    offline: tuple[RequestResolver, Time], tmp_path: Path
) -> None:
    put(tmp_path, CATALOG["sdxl-base"].source)
    assert offline[0].resolve(Wanted(prompt="a", backend="sd")).model == "sdxl-base"


def test_hardware_is_the_reason_before_files_are(offline: tuple[RequestResolver, Time]) -> None:
    assert "needs Apple Silicon" in (offline[0].why_not_here(CATALOG["mflux-schnell"]) or "")


def test_plan_looks_where_the_settings_say(tmp_path: Path) -> None:
    from api.services import make_plan

    environ = {
        "FLUX_GPUS": "none", "FLUX_ALLOW_DOWNLOAD": "false", "FLUX_MODELS_DIR": str(tmp_path),
    }  # fmt: skip
    plan = make_plan(load_settings("bf16", environ), profile_of("bf16"))
    assert "never fetched" in (plan.resolver.why_no_files(SD) or "")
    put(tmp_path, SCHNELL.source)
    assert plan.resolver.why_no_files(SCHNELL) is None
