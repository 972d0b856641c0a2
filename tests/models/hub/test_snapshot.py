"""A model's folder: found where it is whole, else fetched, so that diffusers loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.catalog import load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT
from models.hub import on_disk
from models.hub.cache import RepoCache
from models.hub.repository import ask
from models.hub.snapshot import download, single_file, snapshot
from models.types import LoadOptions
from tests.hub import COMMIT, Hub

REPO = "somebody/tiny-flux"
ROW = load_catalog()["embedded"].model_copy(update={"id": "tiny", "source": REPO})


def options(folder: Path, **changes) -> LoadOptions:
    values = {"devices": ("cpu",), "models_dir": folder, "allow_download": True}
    return LoadOptions(**values | changes)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_model_is_fetched_with_the_files_it_needs_and_no_others(hub: Hub, tmp_path: Path) -> None:
    folder = snapshot(ROW, options(tmp_path))
    embedded = ROOT / "models" / "embedded"
    assert files(folder) == files(embedded) - {"README.md", "samples.png"}
    assert on_disk.look_at(ROW, tmp_path)[0]
    assert all(
        (folder / name).read_bytes() == (embedded / name).read_bytes() for name in files(folder)
    )


def test_model_that_is_whole_is_found_without_a_network(hub: Hub, tmp_path: Path) -> None:
    folder = snapshot(ROW, options(tmp_path))
    hub.asked.clear()
    assert snapshot(ROW, options(tmp_path)) == folder
    assert hub.asked == []


def test_model_that_was_cut_short_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    folder = snapshot(ROW, options(tmp_path))
    weights = (folder / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert snapshot(ROW, options(tmp_path)) == folder
    assert weights.read_bytes() == whole


def test_download_that_is_half_done_is_not_in_use(hub: Hub, tmp_path: Path) -> None:
    name = f"{REPO}/vae/diffusion_pytorch_model.safetensors"
    hub.spoilt[name] = b"\0" * len(hub.files[name])
    with pytest.raises(ModelUnavailable, match="model tiny is not on this machine.*checksum"):
        snapshot(ROW, options(tmp_path))
    assert on_disk.snapshot_of(tmp_path, REPO) is None
    hub.spoilt.clear()
    hub.got.clear()
    snapshot(ROW, options(tmp_path))
    fetched = {asked for asked, _ in hub.got}
    assert name in fetched and f"{REPO}/model_index.json" not in fetched


def test_downloads_that_are_off_say_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match="never fetched.*FLUX_ALLOW_DOWNLOAD.*download_models tiny"
    ):
        snapshot(ROW, options(tmp_path, allow_download=False))
    assert list(tmp_path.iterdir()) == []


def test_parts_that_come_from_elsewhere_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = snapshot(ROW, options(tmp_path), without=["transformer"])
    assert not (folder / "transformer").exists() and (folder / "vae").is_dir()
    assert snapshot(ROW, options(tmp_path, allow_download=False), without=["transformer"]) == folder
    assert (snapshot(ROW, options(tmp_path)) / "transformer").is_dir()


def test_progress_is_told_in_words_and_as_a_fraction(hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    snapshot(
        ROW, options(tmp_path, on_progress=lambda what, fraction: told.append((what, fraction)))
    )
    assert told[-1][1] == 1.0
    assert told[-1][0].startswith(f"fetching {REPO}: ")
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)


def test_what_huggingface_hub_would_write_is_found(hub: Hub, tmp_path: Path) -> None:
    """Its cache and ours are one: what it has fetched is not fetched again, and the other way round."""
    from huggingface_hub import snapshot_download

    folder = snapshot(ROW, options(tmp_path))
    theirs = snapshot_download(REPO, cache_dir=tmp_path, local_files_only=True)
    assert Path(theirs) == folder
    assert folder.name == COMMIT


@pytest.mark.parametrize("index", [b"<html>", b"[1]", b"\xff"])
def test_index_that_is_no_json_is_said(hub: Hub, tmp_path: Path, index: bytes) -> None:
    hub.files[f"{REPO}/model_index.json"] = index
    with pytest.raises(ModelUnavailable, match="model_index.json is no JSON"):
        download(REPO, tmp_path)


def test_models_folder_that_cannot_be_made_is_said(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="FLUX_MODELS_DIR"):
        download(REPO, tmp_path / "file" / "models")


def test_single_file_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    path = single_file(REPO, "flux1-tiny.safetensors", ROW, options(tmp_path))
    assert path.read_bytes() == hub.files[f"{REPO}/flux1-tiny.safetensors"]
    hub.asked.clear()
    assert single_file(REPO, path.name, ROW, options(tmp_path, allow_download=False)) == path
    assert hub.asked == []


def test_single_file_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="tiny.*has no file nothing.safetensors"):
        single_file(REPO, "nothing.safetensors", ROW, options(tmp_path))


def test_new_commit_replaces_the_old_one_when_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    snapshot(ROW, options(tmp_path))
    cache = RepoCache(tmp_path, REPO)
    cache.use("b" * 40)  # as if another commit had been in use
    (cache.folder / "snapshots" / COMMIT).rename(cache.folder / "snapshots" / ("b" * 40))
    hub.got.clear()
    folder = download(REPO, tmp_path)
    assert folder.name == COMMIT == ask(REPO).commit
    assert on_disk.snapshot_of(tmp_path, REPO) == folder
    assert hub.got == [], "its files were here"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
