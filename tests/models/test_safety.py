"""Checkers of real classes: which weights are taken, what they say, and that a blurred picture shows nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from config.catalog import load_catalog
from config.errors import ModelUnavailable
from models import safety
from models.safety import HUB_ID, Weights, blurred, find
from tests.safety_weights import classifier, of_stable_diffusion

CATALOG = load_catalog()
SD = CATALOG["stable-diffusion-v1-5"]


def plain(colour: str | tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("safety") / "judge")


def in_cache(hub: Path, repo: str, source: Path, part: str = "") -> Path:
    """A folder as the snapshot in use of a repository, or as a part of it."""
    root = hub / f"models--{repo.replace('/', '--')}"
    folder = root / "snapshots" / "c0ffee" / part
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("c0ffee")
    return folder


def load(folder: Path) -> safety.SafetyChecker:
    return safety.load(Weights(folder=folder, name="judge"))


def test_classifier_flags_what_its_unsafe_label_says(weights: Path) -> None:
    checker = load(weights)
    assert checker.is_flagged(plain("red")) and checker.is_flagged(plain((200, 60, 50)))
    assert not checker.is_flagged(plain("blue")) and not checker.is_flagged(plain("white"))


def test_classifier_looks_at_the_whole_of_a_picture(weights: Path) -> None:
    picture = plain("black", (400, 40))
    picture.paste("red", (300, 0, 400, 40))
    assert load(weights).is_flagged(picture)


def test_checker_whose_weights_are_cut_short_says_so(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "judge")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelUnavailable, match="judge cannot be loaded.*fetch it again"):
        load(folder)


Tensors = dict[str, torch.Tensor]


def without_last(tensors: Tensors) -> Tensors:
    return {name: each for name, each in tensors.items() if not name.endswith(LAST)}


def no_numbers(tensors: Tensors) -> Tensors:
    return {
        name: each * float("nan") if name.endswith(LAST) else each for name, each in tensors.items()
    }


LAST = ("classifier.weight", "concept_embeds")


@pytest.mark.parametrize(
    ("change", "said"), [(without_last, " lack"), (no_numbers, "not all values of")]
)
@pytest.mark.parametrize("kind", ["classifier", "of_stable_diffusion"])
def test_checker_whose_answer_would_mean_nothing_is_refused(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors], said: str
) -> None:
    """transformers fills in what is missing with random numbers, and of what is no number none is flagged."""
    folder = tmp_path / "judge"
    classifier(folder) if kind == "classifier" else of_stable_diffusion(folder, flags=True)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=f"judge cannot be loaded: its weights.*{said}"):
        load(folder)


@pytest.mark.parametrize("labels", [("cat", "dog"), ("nsfw", "porn")])
def test_classifier_without_both_kinds_of_labels_is_refused(
    tmp_path: Path, labels: tuple[str, str]
) -> None:
    with pytest.raises(ModelUnavailable, match=f"labels are {', '.join(labels)}"):
        load(classifier(tmp_path / "judge", labels=labels))


def test_classifier_whose_recipe_has_gone_is_refused(tmp_path: Path, weights: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "judge")
    (folder / safety.RECIPE).unlink()
    with pytest.raises(ModelUnavailable, match="preprocessor_config.json is missing"):
        load(folder)


@pytest.mark.parametrize("flags", [True, False])
def test_checker_of_stable_diffusion_is_read(tmp_path: Path, flags: bool) -> None:
    checker = load(of_stable_diffusion(tmp_path / "safety_checker", flags=flags))
    assert checker.is_flagged(plain("green", (300, 500))) is flags


def test_recipe_of_a_neighbouring_extractor_is_followed(tmp_path: Path) -> None:
    extractor = tmp_path / "feature_extractor"
    extractor.mkdir()
    (extractor / "preprocessor_config.json").write_text(
        json.dumps({"size": 30, "crop_size": {"height": 20, "width": 10}, "do_normalize": False})
    )
    recipe = safety._recipe(tmp_path / "safety_checker", extractor)
    assert (recipe.side, recipe.is_cropped, recipe.mean) == ((10, 20), True, (0.0,) * 3)
    assert recipe.pixels(plain("white", (7, 90))).shape == (1, 3, 20, 10)


def test_damaged_weights_are_said(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(weights, folder)
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="judge cannot be loaded.*fetch it again") as caught:
        load(folder)
    assert str(tmp_path) not in caught.value.message


def test_find_without_weights_says_how_to_get_some(tmp_path: Path) -> None:
    found, why = find("auto", tmp_path, CATALOG)
    assert found is None
    assert "download_models --safety-checker" in why and HUB_ID in why


def test_find_takes_the_classifier_of_the_hub(tmp_path: Path, weights: Path) -> None:
    folder = in_cache(tmp_path, HUB_ID, weights)
    assert find("auto", tmp_path, CATALOG) == (Weights(folder=folder, name=HUB_ID), "")


def test_find_takes_what_came_with_stable_diffusion(tmp_path: Path) -> None:
    source = of_stable_diffusion(tmp_path / "source", flags=False)
    folder = in_cache(tmp_path, SD.source, source, part="safety_checker")
    found, _ = find("auto", tmp_path, CATALOG)
    assert found == Weights(folder=folder, name=f"{SD.source}/safety_checker")


def test_find_takes_a_folder_or_a_hub_id_that_is_named(tmp_path: Path, weights: Path) -> None:
    assert find(str(weights), tmp_path, CATALOG)[0].folder == weights
    in_cache(tmp_path, "somebody/judge", weights)
    assert find("somebody/judge", tmp_path, CATALOG)[0].name == "somebody/judge"


def test_find_of_a_name_that_is_not_here_says_so(tmp_path: Path) -> None:
    found, why = find("somebody/judge", tmp_path, CATALOG)
    assert found is None and "somebody/judge is no folder here and not in the Hub's cache" in why
    assert "--safety-checker` fetches somebody/judge" in why


@pytest.mark.parametrize("wanted", ["/nonexistent", "../judge", "./judge", "judge", "a/b/c"])
def test_find_of_a_folder_that_is_not_there_does_not_say_that_it_could_be_fetched(
    tmp_path: Path, wanted: str
) -> None:
    found, why = find(wanted, tmp_path, CATALOG)
    assert found is None and "fetches" not in why and "name a folder with a checker" in why


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names neither"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 9), "cut short"),
        (lambda folder: (folder / safety.RECIPE).unlink(), "how it looks at a picture"),
    ],
)
def test_find_takes_no_folder_that_cannot_be_loaded(
    tmp_path: Path, weights: Path, spoil, said: str
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(weights, folder)
    spoil(folder)
    found, why = find(str(folder), tmp_path, CATALOG)
    assert found is None and said in why
    in_cache(tmp_path, HUB_ID, folder)
    found, why = find("auto", tmp_path, CATALOG)
    assert found is None and f"({HUB_ID}: " in why and said in why


@pytest.mark.parametrize("size", [(512, 512), (1024, 256), (64, 64), (3, 700)])
def test_blurred_picture_has_its_size_and_none_of_its_detail(size: tuple[int, int]) -> None:
    noise = numpy.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    after = blurred(Image.fromarray(noise))
    assert after.size == size and after.mode == "RGB"
    few = numpy.asarray(after.resize((3, 3), Image.Resampling.BOX), dtype=float)
    back = Image.fromarray(few.astype(numpy.uint8)).resize(size, Image.Resampling.BICUBIC)
    rest = numpy.asarray(after, dtype=float) - numpy.asarray(back, dtype=float)
    assert rest.std() < 0.25 * noise.std(), "what is left is in nine patches"
