"""Training a LoRA end to end on the embedded model: files in every format, resuming, bad input."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.utils.logging import disable_progress_bar
from PIL import Image

from models.lora.convert import convert
from models.lora.inspect import inspect
from models.lora.merge import layer_shapes, merge
from scripts import train_lora
from scripts.embedded.captions import plain_caption
from scripts.embedded.postcards import draw_postcard
from scripts.embedded.scene import random_scene
from scripts.embedded.training_state import load_state
from scripts.lora import adapter
from scripts.lora.files import FORMATS
from scripts.lora.picture_folder import read_folder, training_size
from scripts.lora.styles import sepia

FEW = ["--resolution", "64", "--rank", "2", "--batch-size", "2", "--steps", "4"]
FEW += ["--learning-rate", "1e-2", "--warm-up-steps", "1", "--save-every", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def quiet() -> None:
    disable_progress_bar()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sepia postcards of two shapes with their captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(4)
    for index, size in enumerate([(96, 96), (96, 96), (144, 64)]):
        scene = random_scene(rng)
        sepia(draw_postcard(scene, rng, size).picture).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(plain_caption(scene))
    return folder


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(
        "models/embedded/transformer", dtype=torch.float32
    )


def run(pictures: Path, folder: Path, *options: str, name: str = "cat.safetensors") -> Path:
    output = folder / name
    work = folder / f"work-{output.stem}"
    train_lora.main([str(pictures), "--output", str(output), "--work", str(work), *FEW, *options])
    return output


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says when it ends with an error."""
    with pytest.raises(SystemExit) as ended:
        train_lora.main(list(words))
    return ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err


def trained_deltas(lora_work: Path, scale: float) -> dict[str, torch.Tensor]:
    weights = load_state(lora_work / "state.pt")["weights"]
    return {layer: scale * up @ down for layer, (down, up) in adapter.collect(weights).items()}


# XLabs' format has names for attention and for the output of single blocks alone
FOR_XLABS = r"transformer_blocks\.\d\.attn\..+|single_transformer_blocks\.\d\.(attn\..+|proj_out)"
LAYERS = {form: (FOR_XLABS if form == "xlabs" else "all") for form in FORMATS}


@pytest.mark.parametrize("form", FORMATS)
def test_train_lora_every_format_reads_back_with_every_key_matched(
    form: str, pictures: Path, transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    path = run(
        pictures, tmp_path, "--format", form, "--layers", LAYERS[form], "--alpha", "3",
        "--save-dtype", "float32", "--steps", "1",
    )  # fmt: skip

    lora = convert(path)
    shapes = layer_shapes({"transformer": transformer})
    (match,) = merge([(lora, 1.0)], shapes).matches
    info = inspect(path)
    names = adapter.find_layers(transformer, LAYERS[form])
    assert info.format == form
    assert match.unmatched_keys == () and match.matched_keys > 0
    assert set(lora.layers) == {f"transformer.{name}" for name in names}
    trained = trained_deltas(tmp_path / "work-cat", 3 / 2)
    for name in names:
        expected = trained[name]
        found = lora.layers[f"transformer.{name}"].delta()
        if name == "norm_out.linear" and form in ("kohya", "bfl"):
            assert expected.abs().max() > 0
        assert torch.allclose(found, expected, atol=1e-6), name


def test_train_lora_changes_the_picture(pictures: Path, tmp_path: Path) -> None:
    from scripts.lora.application import applied

    path = run(pictures, tmp_path, "--layers", "blocks")
    pipeline = FluxPipeline.from_pretrained("models/embedded", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.from_numpy(
            pipeline("a ball", width=64, height=64, num_inference_steps=2, max_sequence_length=64,
                     generator=generator, output_type="np").images
        )  # fmt: skip

    plain = draw()
    with applied(pipeline, {path: 1.0}):
        changed = draw()
    assert (changed - plain).abs().max() > 0.02
    assert torch.equal(draw(), plain)


def test_train_lora_metadata_tell_trigger_word_base_rank_and_trainer(
    pictures: Path, tmp_path: Path
) -> None:
    from models.lora.header import read_header

    told = ["--format", "kohya", "--trigger-word", "g0ld", "--alpha", "1"]
    path = run(pictures, tmp_path, *told, "--steps", "1")

    info, told = inspect(path), read_header(path).metadata
    assert info.trigger_words == ("g0ld",)
    assert (info.base.name, info.base.hidden_size) == ("FLUX.1", 192)
    assert told["modelspec.trigger_phrase"] == "g0ld"
    assert told["modelspec.architecture"] == "flux-1-schnell/lora"
    assert told["modelspec.title"] == "cat" and told["ss_sd_model_name"] == "embedded"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("2", "1")
    assert "train_lora" in told["software"]


def test_train_lora_interrupted_and_resumed_gives_the_same_bytes(
    pictures: Path, tmp_path: Path
) -> None:
    options = ["--ema-decay", "0.9", "--schedule", "cosine", "--sampler-steps", "4"]
    options += ["--trigger-word", "g0ld", "--trigger-share", "0.5", "--accumulation", "2"]
    options += ["--title", "x", "--steps", "3", "--save-every", "1"]
    whole = run(pictures, tmp_path, *options).read_bytes()
    half = run(pictures, tmp_path, *options, "--stop-after", "2", name="b.safetensors")
    assert half.read_bytes() != whole

    resumed = run(pictures, tmp_path, *options, name="b.safetensors")

    assert resumed.read_bytes() == whole


def test_train_lora_gradient_checkpointing_changes_no_bit(pictures: Path, tmp_path: Path) -> None:
    options = ["--title", "x", "--steps", "2", "--dtype", "float32"]
    plain = run(pictures, tmp_path, *options)
    saving = run(pictures, tmp_path, *options, "--gradient-checkpointing", name="b.safetensors")

    assert saving.read_bytes() == plain.read_bytes()


def test_train_lora_resuming_with_other_settings_is_refused_until_restart(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(pictures, tmp_path, "--steps", "1")
    words = [str(pictures), "--output", str(path), "--work", str(tmp_path / "work-cat"), *FEW]
    words += ["--steps", "1", "--learning-rate", "1e-3"]

    message = refusal(capsys, *words)
    assert "learning_rate" in message and "--restart" in message
    before = path.read_bytes()
    train_lora.main([*words, "--restart"])
    assert path.read_bytes() != before


def test_train_lora_guidance_embedding_is_fed_where_the_model_has_one(
    pictures: Path, tmp_path: Path
) -> None:
    model = with_guidance(tmp_path / "guided")
    path = run(pictures, tmp_path, "--model", str(model), "--layers", "all", "--steps", "1")

    assert any("guidance_embedder" in name for name in convert(path).layers)


def with_guidance(folder: Path) -> Path:
    """The embedded model's folder with an untrained transformer that takes guidance, as dev's."""
    folder.mkdir()
    for part in Path("models/embedded").resolve().iterdir():
        if part.name != "transformer":
            (folder / part.name).symlink_to(part)
    config = FluxTransformer2DModel.load_config("models/embedded/transformer")
    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_config(config | {"guidance_embeds": True})
    model.save_pretrained(folder / "transformer")
    return folder


def test_train_lora_empty_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    message = refusal(capsys, str(tmp_path / "none"), "--output", str(tmp_path / "a.safetensors"))
    assert "holds no pictures" in message and str(tmp_path / "none") in message
    assert not (tmp_path / "a.safetensors").exists()


def test_train_lora_missing_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, str(tmp_path / "no"), "--output", str(tmp_path / "a.safetensors"))
    assert f"{tmp_path / 'no'} is no folder" in message


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_train_lora_picture_without_caption_is_named(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (64, 64)))
    if text is None:
        (folder / "one.txt").unlink()
    else:
        (folder / "one.txt").write_text(text)
    message = refusal(capsys, str(folder), "--output", str(tmp_path / "a.safetensors"), *FEW)
    assert "one.png" in message and "one.txt" in message and "--caption" in message


def test_read_folder_caption_stands_in_for_missing_files(tmp_path: Path) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (64, 64)))
    (folder / "one.txt").unlink()
    (example,) = read_folder(folder, resolution_px=64, caption="a cat")
    assert example.caption == "a cat"


def test_train_lora_unreadable_picture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (64, 64)))
    whole = (folder / "one.png").read_bytes()
    (folder / "one.png").write_bytes(whole[: len(whole) // 2])
    message = refusal(capsys, str(folder), "--output", str(tmp_path / "a.safetensors"), *FEW)
    assert "one.png is no picture that can be read" in message


def test_train_lora_tiny_picture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (100, 80)))
    words = [str(folder), "--output", str(tmp_path / "a.safetensors"), *FEW, "--resolution", "512"]
    message = refusal(capsys, *words)
    assert "one.png is too small with 100 x 80 pixels" in message and "--resolution" in message


def test_train_lora_two_pictures_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (64, 64)))
    Image.new("RGB", (64, 64)).save(folder / "one.jpg")
    message = refusal(capsys, str(folder), "--output", str(tmp_path / "a.safetensors"), *FEW)
    assert "several pictures are named one" in message


@pytest.mark.parametrize(
    ("text", "resolution", "said"),
    [("seven", "native", "one.seed holds 'seven'"), ("7", "64", "--resolution native")],
)
def test_train_lora_seed_that_cannot_be_used_is_named(
    text: str,
    resolution: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = one_picture(tmp_path, Image.new("RGB", (64, 64)))
    (folder / "one.seed").write_text(text)
    words = [str(folder), "--output", str(tmp_path / "a.safetensors"), *FEW]
    assert said in refusal(capsys, *words, "--resolution", resolution)


@pytest.mark.parametrize(
    ("name", "said"),
    [("cat.bin", ".safetensors"), ("file/cat.safetensors", "cannot be written to")],
)
def test_train_lora_output_that_cannot_be_written_is_refused_before_training(
    name: str, said: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    work = tmp_path / "work"
    words = [str(pictures), "--output", str(tmp_path / name), "--work", str(work), *FEW]
    assert said in refusal(capsys, *words)
    assert not work.exists()


@pytest.mark.parametrize(
    ("layers", "form", "said"),
    [
        ("nothing", "diffusers", "means no layer"),
        ("(", "diffusers", "regular expression"),
        ("blocks", "xlabs", "has no name for the layer"),
    ],
)
def test_train_lora_layers_that_do_not_go_are_refused_before_training(
    layers: str,
    form: str,
    said: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(pictures), "--output", str(tmp_path / "a.safetensors"), *FEW]
    words += ["--work", str(tmp_path / "work"), "--layers", layers, "--format", form]
    assert said in refusal(capsys, *words)
    assert not (tmp_path / "work").exists()


def test_train_lora_folder_and_preset_together_are_refused(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not both" in refusal(capsys, str(pictures), "--preset", "sketch")


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((1920, 1080), 512, (688, 384)),
        ((300, 200), None, (288, 192)),
    ],
)
def test_training_size_keeps_shape_at_the_wanted_area(
    size: tuple[int, int], resolution: int | None, expected: tuple[int, int]
) -> None:
    assert training_size(size, resolution) == expected


def test_read_folder_turned_and_transparent_pictures_are_upright_on_white(tmp_path: Path) -> None:
    clear = one_picture(tmp_path / "clear", Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    (example,) = read_folder(clear, resolution_px=None)
    assert example.open().getpixel((5, 5)) == (255, 255, 255)
    turned = Image.new("RGB", (96, 64))
    exif = turned.getexif()
    exif[0x0112] = 6  # on its side
    folder = one_picture(tmp_path / "turned", turned, exif=exif)
    (example,) = read_folder(folder, resolution_px=None)
    assert example.size == example.open().size == (64, 96)


def one_picture(folder: Path, picture: Image.Image, **options: object) -> Path:
    folder = folder / "one"
    folder.mkdir(parents=True)
    picture.save(folder / "one.png", **options)
    (folder / "one.txt").write_text("a caption")
    return folder


def test_train_lora_model_that_is_not_there_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(pictures), "--output", str(tmp_path / "a.safetensors"), *FEW]
    message = refusal(capsys, *words, "--model", str(tmp_path / "none"))
    assert f"--model {tmp_path / 'none'} is no folder of a diffusers model" in message


def test_train_lora_model_of_other_channels_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = FluxTransformer2DModel.load_config("models/embedded/transformer")
    (tmp_path / "fill/transformer").mkdir(parents=True)
    (tmp_path / "fill/transformer/config.json").write_text(
        json.dumps(dict(config) | {"in_channels": 384})
    )
    words = [str(pictures), "--output", str(tmp_path / "a.safetensors"), *FEW]
    message = refusal(capsys, *words, "--model", str(tmp_path / "fill"))
    assert "384 channels" in message


def test_train_lora_loss_that_is_no_number_is_refused_and_leaves_no_file(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.safetensors"
    words = [str(pictures), "--output", str(output), "--work", str(tmp_path / "work"), *FEW]
    message = refusal(capsys, *words, "--alpha", "1e38", "--learning-rate", "1e30")
    assert "the loss is nan" in message and "--learning-rate" in message
    assert not output.exists()


def test_training_guide_names_options_that_there_are_and_their_defaults() -> None:
    guide = Path("docs/lora-training.md").read_text()
    known = {word for action in train_lora._parser()._actions for word in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", guide)) <= known
    plan = train_lora.parse_arguments(["pictures", "--output", "a.safetensors"]).plan
    told = (plan.rank, plan.alpha, plan.layers, plan.steps, plan.batch_size, plan.accumulation)
    assert told == (16, 16, "attention", 1000, 1, 1)
    assert (plan.learning_rate, plan.warm_up_steps, plan.guidance_scale) == (1e-4, 50, 3.5)
    for value in ("16, the rank", "1000, 1, 1", "1e-4, 50, `constant`", "| 3.5 |"):
        assert value in guide
