"""The engine nunchaku without its kernels: on a stand-in with its signatures, never run on a GPU here."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from config.catalog import ModelRow, load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT
from models import bf16_flux_model
from models.fp4 import nunchaku_engine as engine
from models.fp4 import nunchaku_support as support
from models.types import Drawing, GenerationRequest, LoadOptions, LoraRef, OutputFormat
from tests.models.lora import formats

# The engine speaks to the diffusers that nunchaku needs; the newer one here warns of that word.
pytestmark = pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")

STAND_IN = Path(__file__).parent / "nunchaku_standin"
ADA = (8, 9)
EMBEDDED = load_catalog()["embedded"]
# The embedded model under the name of one that nunchaku has a checkpoint of.
SCHNELL = EMBEDDED.model_copy(
    update={"id": "flux-schnell", "source": "black-forest-labs/FLUX.1-schnell"}
)
OPTIONS = LoadOptions(devices=("cuda:0",), models_dir=Path("/nowhere"), allow_download=False)
DTYPES = {"int4": "int4", "fp4": "fp4_e2m1_all"}


def forget_nunchaku() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_nunchaku_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget_nunchaku()
    yield
    forget_nunchaku()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts one of the stand-in packages where Python looks first."""

    def put(which: str) -> Path:
        monkeypatch.syspath_prepend(str(STAND_IN / which))
        importlib.invalidate_caches()
        return STAND_IN / which

    return put


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch one of a version and CUDA, that sees a GPU of a compute capability."""

    def make(
        capability: tuple[int, int] = ADA, version: str = "2.11.0+cu130", cuda: str = "13.0"
    ) -> None:
        monkeypatch.setattr(torch, "__version__", version)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return make


# Whether it can run


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)], ids=str)
def test_why_not_with_the_wheel_on_a_gpu_with_kernels_is_none(
    install, machine, capability: tuple[int, int]
) -> None:
    install("right")
    machine(capability)
    assert engine.why_not(OPTIONS) is None


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((6, 1), "Pascal"),
        ((7, 0), "Volta"),
        ((8, 7), "Jetson Orin"),
        ((9, 0), "Hopper"),
        ((10, 0), "datacenter Blackwell"),
        ((10, 3), "datacenter Blackwell"),
        ((11, 0), "Jetson Thor"),
        ((13, 7), "13.7"),
    ],
    ids=str,
)
def test_why_not_on_a_gpu_without_kernels_names_it_and_the_other_engine(
    install, machine, capability: tuple[int, int], name: str
) -> None:
    install("right")
    machine(capability)
    reason = engine.why_not(OPTIONS)
    assert name in reason
    assert f"compute capability {capability[0]}.{capability[1]}" in reason
    assert "use the engine nvfp4" in reason


def test_why_not_on_the_cpu_says_so(install) -> None:
    install("right")
    reason = engine.why_not(replace(OPTIONS, devices=("cpu",)))
    assert "does not run on the CPU" in reason
    assert "nvfp4" in reason


def test_why_not_when_torch_sees_no_gpu_says_so(install) -> None:
    """This machine as it is, where it has no GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    install("right")
    reason = engine.why_not(OPTIONS)
    assert f"torch {torch.__version__} sees no cuda:0" in reason


def test_why_not_with_two_gpus_of_which_one_is_too_new_names_that(
    install, machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("right")
    machine()
    by_index = {0: ADA, 1: (9, 0)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: by_index[torch.device(device).index]
    )
    assert engine.why_not(replace(OPTIONS, devices=("cuda:0",))) is None
    assert "cuda:1: it is Hopper" in engine.why_not(replace(OPTIONS, devices=("cuda:0", "cuda:1")))


def test_why_not_without_the_package_says_how_to_get_it(machine) -> None:
    machine()
    reason = engine.why_not(OPTIONS)
    assert "nunchaku is not installed" in reason
    assert "scripts/setup_env.sh --nunchaku" in reason


@pytest.mark.parametrize("devices", [("cuda:0",), ("cpu",)])
def test_why_not_with_pypis_package_refuses_it_with_words_and_never_runs_it(
    install, machine, devices: tuple[str, ...]
) -> None:
    install("wrong")
    machine()
    reason = engine.why_not(replace(OPTIONS, devices=devices))
    assert "nunchaku 0.16.1" in reason
    assert "unrelated" in reason
    assert "piece-wise linear segments" in reason
    assert "pip uninstall nunchaku" in reason
    assert "nunchaku" not in sys.modules


def test_why_not_with_another_module_of_that_name_imported_refuses_it(
    machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setitem(sys.modules, "nunchaku", type(sys)("nunchaku"))
    assert "unrelated package" in engine.why_not(OPTIONS)


@pytest.mark.parametrize("version", ["2.12.0", "2.13.0+cu130", "3.0.0", "2.15.0a0+git1234"])
def test_why_not_with_a_torch_after_the_last_wheel_names_both(install, machine, version) -> None:
    install("right")
    machine(version=version)
    reason = engine.why_not(OPTIONS)
    assert f"stop at torch 2.11, and torch {version} is installed" in reason
    assert ".venv-nunchaku" in reason


@pytest.mark.parametrize(
    ("version", "cuda", "named"),
    [("2.10.0", "13.0", "built for torch 2.11"), ("2.11.0+cu128", "12.8", "built for CUDA 13")],
)
def test_why_not_with_a_wheel_for_another_build_of_torch_names_both(
    install, machine, version: str, cuda: str, named: str
) -> None:
    install("right")
    machine(version=version, cuda=cuda)
    reason = engine.why_not(OPTIONS)
    assert "nunchaku 1.2.1+cu13.0torch2.11" in reason
    assert named in reason
    assert version in reason


def test_why_not_when_the_wheel_does_not_import_says_why(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nunchaku").mkdir()
    (tmp_path / "nunchaku" / "__init__.py").write_text(
        "NunchakuFluxTransformer2dModel = None\nraise ImportError('_C: undefined symbol: _ZN3c10')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    machine()
    reason = engine.why_not(OPTIONS)
    assert "cannot be imported" in reason
    assert "undefined symbol" in reason
    assert "scripts/setup_env.sh --nunchaku" in reason


def test_why_not_with_a_release_that_lacks_the_t5_names_it(
    machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nunchaku").mkdir()
    (tmp_path / "nunchaku" / "__init__.py").write_text("NunchakuFluxTransformer2dModel = object\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    machine()
    assert "no NunchakuT5EncoderModel" in engine.why_not(OPTIONS)


def test_importing_the_engine_imports_neither_torch_nor_nunchaku() -> None:
    code = "import sys, models.fp4.nunchaku_engine; print(sorted({'torch', 'diffusers', 'nunchaku'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# What it loads


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with the 16-bit model but for what nunchaku replaces, and with its checkpoints."""
    cache = tmp_path_factory.mktemp("hub")
    model = _snapshot(cache, SCHNELL.source)
    shutil.copytree(
        EMBEDDED.folder, model, ignore=shutil.ignore_patterns("samples.png"), dirs_exist_ok=True
    )
    for part, weights in (("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        (model / part / f"{weights}.safetensors").unlink()
    schnell = _snapshot(cache, "nunchaku-tech/nunchaku-flux.1-schnell")
    for word in DTYPES:
        write_checkpoint(schnell / f"svdq-{word}_r32-flux.1-schnell.safetensors", word)
    t5 = _snapshot(cache, "nunchaku-tech/nunchaku-t5")
    save_file(
        load_file(EMBEDDED.folder / "text_encoder_2" / "model.safetensors"),
        t5 / "awq-int4-flux.1-t5xxl.safetensors",
        metadata={"config": (EMBEDDED.folder / "text_encoder_2" / "config.json").read_text()},
    )
    return cache


def _snapshot(cache: Path, repository: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def write_checkpoint(path: Path, word: str, *, rank: int = 32, **config: Any) -> Path:
    """The embedded transformer, described as nunchaku describes its checkpoints."""
    folder = EMBEDDED.folder / "transformer"
    described = json.loads((folder / "config.json").read_text()) | config
    quantisation = {"method": "svdquant", "weight": {"dtype": DTYPES[word]}, "rank": rank}
    save_file(
        load_file(folder / "diffusion_pytorch_model.safetensors"),
        path,
        metadata={
            "config": json.dumps(described),
            "quantization_config": json.dumps(quantisation),
        },
    )
    return path


@pytest.fixture
def load(
    install, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[tuple[str, float]]]]:
    """Loads on the CPU as if it were a GPU; gives the model and the progress that was told."""
    install("right")

    def run(
        capability: tuple[int, int] = ADA,
        row: ModelRow = SCHNELL,
        models_dir: Path = hub,
        loras_dir: Path | None = None,
    ):
        monkeypatch.setattr(engine, "why_not", lambda options: None)
        monkeypatch.setattr(engine, "_capability", lambda device: capability)
        monkeypatch.delenv("HF_HOME", raising=False)
        told: list[tuple[str, float]] = []
        options = LoadOptions(
            devices=("cpu",),
            models_dir=models_dir,
            allow_download=False,
            loras_dir=loras_dir,
            on_progress=lambda what, fraction: told.append((what, fraction)),
        )
        return engine.load(row, options), told

    return run


def draw(model: Any) -> Any:
    request = GenerationRequest(
        prompt="a red balloon over green hills at noon",
        negative_prompt=None,
        model="flux-schnell",
        backend="flux",
        width=128,
        height=128,
        num_inference_steps=2,
        guidance_scale=0.0,
        true_cfg_scale=1.0,
        seed=5,
        num_images=1,
        output_format=OutputFormat.PNG,
        output_quality=95,
        tags=(),
    )
    images, _ = model.generate(
        [Drawing(request=request, seed=5)],
        on_stage=lambda stage: None,
        on_step=lambda step, steps, preview: None,
    )
    return torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8).float()


def test_load_draws_what_the_same_weights_draw_without_it(load) -> None:
    model, told = load()
    plain = bf16_flux_model.load(
        EMBEDDED, LoadOptions(devices=("cpu",), models_dir=Path("/nowhere"), allow_download=False)
    )
    error = (draw(model) - draw(plain)).square().mean().item()
    assert error < 4.0, "the stand-in computes in BF16, the other one in FP32"
    assert model.engine == "nunchaku"
    assert model.compute == "SVDQuant INT4 weights and activations, rank 32"
    assert told == [("4-bit checkpoints", 0.0), ("4-bit checkpoints", 1.0)]


@pytest.mark.parametrize(
    ("capability", "compute", "dtype"),
    [((8, 0), "INT4", torch.bfloat16), ((12, 0), "NVFP4", torch.bfloat16)],
    ids=str,
)
def test_load_takes_the_checkpoint_of_the_architecture(load, capability, compute, dtype) -> None:
    model, _ = load(capability)
    assert compute in model.compute.split()
    assert calls_of(model) == [
        ("from_pretrained", {"device": torch.device("cpu"), "torch_dtype": dtype})
    ]


def test_load_on_turing_computes_in_fp16_with_its_attention_and_keeps_the_t5(
    load, hub: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(hub, tmp_path / "hub")
    (model_folder,) = whole.glob("models--black-forest-labs*/snapshots/*")
    shutil.copy(
        EMBEDDED.folder / "text_encoder_2" / "model.safetensors", model_folder / "text_encoder_2"
    )
    shutil.rmtree(whole / "models--nunchaku-tech--nunchaku-t5")
    model, _ = load((7, 5), models_dir=whole)
    assert calls_of(model) == [
        ("from_pretrained", {"device": torch.device("cpu"), "torch_dtype": torch.float16}),
        ("set_attention_impl", "nunchaku-fp16"),
    ]


def calls_of(model: Any) -> list[Any]:
    return model._image.transformer.calls


@pytest.mark.parametrize("row", [load_catalog()["flux-schnell"], load_catalog()["flux-dev"]])
@pytest.mark.parametrize("word", DTYPES)
def test_checkpoint_of_a_catalog_row_is_nunchakus_file(row: ModelRow, word: str) -> None:
    name = row.id.replace("flux-", "flux.1-")
    assert engine.checkpoint_of(row, word) == (
        f"nunchaku-tech/nunchaku-{name}",
        f"svdq-{word}_r32-{name}.safetensors",
    )


# What it refuses to load


def test_load_of_a_model_without_a_checkpoint_names_those_there_are(load) -> None:
    with pytest.raises(ModelUnavailable, match=r"no checkpoint of embedded.*FLUX.1-schnell.*nvfp4"):
        load(row=EMBEDDED)


def test_load_where_it_cannot_run_gives_the_reason() -> None:
    with pytest.raises(
        ModelUnavailable, match="model flux-schnell: nunchaku does not run on the CPU"
    ):
        engine.load(SCHNELL, replace(OPTIONS, devices=("cpu",)))


def test_load_without_the_file_names_it_and_the_setting(load, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        load(models_dir=tmp_path)
    for word in ("nunchaku-flux.1-schnell/svdq-int4_r32", "FLUX_ALLOW_DOWNLOAD"):
        assert word in str(caught.value)


def test_load_without_the_rest_of_the_model_names_its_repository(
    load, hub: Path, tmp_path: Path
) -> None:
    partial = shutil.copytree(hub, tmp_path / "hub")
    shutil.rmtree(partial / "models--black-forest-labs--FLUX.1-schnell")
    with pytest.raises(
        ModelUnavailable, match="black-forest-labs/FLUX.1-schnell is not on this machine"
    ):
        load(models_dir=partial)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "damaged or incomplete"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged or incomplete"),
        (lambda path: path.write_bytes(b""), "damaged or incomplete"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "damaged or incomplete"),
        (lambda path: save_file({"a": torch.zeros(1)}, path), "no checkpoint of nunchaku's"),
        (lambda path: save_file({}, path, {"config": "{"}), "no checkpoint of nunchaku's"),
        (lambda path: write_checkpoint(path, "fp4"), "its weights are fp4_e2m1_all, and this GPU needs int4"),
        (lambda path: write_checkpoint(path, "int4", rank=64), "rank 64, not 32"),
        (lambda path: write_checkpoint(path, "int4", guidance_embeds=True), "another model's"),
        (lambda path: write_checkpoint(path, "int4", num_layers=9), "do not fit its own description"),
        (lambda path: write_checkpoint(path, "int4", joint_attention_dim=64), "do not fit its own description"),
    ],
)  # fmt: skip
def test_load_of_a_wrong_checkpoint_names_file_and_fault(
    load, hub: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoiled = shutil.copytree(hub, tmp_path / "hub")
    (path,) = spoiled.glob("models--nunchaku-tech--nunchaku-flux*/snapshots/*/svdq-int4*")
    spoil(path)
    with pytest.raises(ModelUnavailable) as caught:
        load(models_dir=spoiled)
    message = str(caught.value)
    assert path.name in message
    assert said in message
    assert "Delete the file" in message


def test_load_of_a_truncated_text_encoder_names_the_file(load, hub: Path, tmp_path: Path) -> None:
    spoiled = shutil.copytree(hub, tmp_path / "hub")
    (path,) = spoiled.glob("models--nunchaku-tech--nunchaku-t5/snapshots/*/*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelUnavailable, match="awq-int4-flux.1-t5xxl.safetensors cannot be used"):
        load(models_dir=spoiled)


# LoRAs


@pytest.fixture
def put_lora(tmp_path: Path) -> Callable[..., LoraRef]:
    """Writes a LoRA into the folder that a model loaded with `loras_dir=tmp_path` reads from."""

    def put(state: dict[str, torch.Tensor], weight: float = 1.0) -> LoraRef:
        path = formats.write(tmp_path / "new", state)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(tmp_path / f"{sha256}.safetensors")
        return LoraRef(name="a lora", sha256=sha256, weight=weight)

    return put


def lora_calls(model: Any) -> list[Any]:
    return [call for call in calls_of(model) if "lora" in call[0]]


def test_use_loras_hands_over_their_exact_sum_in_diffusers_names_with_strength_1(
    load, put_lora, tmp_path: Path
) -> None:
    model, _ = load(loras_dir=tmp_path)
    one, other = formats.make_known(1), formats.make_known(2, only=formats.is_for_xlabs)
    refs = [
        put_lora(formats.kohya(one)[0], 0.5),
        put_lora(formats.bfl(other)[0], -2.0),
    ]
    applied = model.use_loras(refs)
    assert [lora.unmatched_keys for lora in applied] == [0, 0]
    update, strength = lora_calls(model)
    assert (update[0], strength) == ("update_lora_params", ("set_lora_strength", 1.0))
    tensors = update[1]
    assert {tensor.dtype for tensor in tensors.values()} == {
        torch.bfloat16
    }, "nunchaku takes no FP32"
    for layer, delta in one.deltas.items():
        down, up = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
        wanted = 0.5 * delta - 2.0 * other.deltas.get(layer, torch.zeros(()))
        assert up.shape[1] == (8 if layer in other.deltas else 4)
        error = (up.float() @ down.float() - wanted).norm() / wanted.norm()
        assert error < 0.01, f"{layer}: rounding to BF16 and no more"


def test_use_loras_of_none_takes_all_away_and_the_same_again_tells_nothing(
    load, put_lora, tmp_path: Path
) -> None:
    model, _ = load(loras_dir=tmp_path)
    ref = put_lora(formats.kohya(formats.make_known())[0])
    model.use_loras([])
    assert lora_calls(model) == [], "there is nothing to take away"
    model.use_loras([ref])
    model.use_loras([ref])
    model.use_loras([])
    names = [call[0] for call in lora_calls(model)]
    assert names == ["update_lora_params", "set_lora_strength", "reset_lora"]


def test_use_loras_of_the_text_encoder_alone_changes_clip_and_not_the_transformer(
    load, put_lora, tmp_path: Path
) -> None:
    model, _ = load(loras_dir=tmp_path)
    plain = draw(model)
    model.use_loras([put_lora(formats.text_encoders("kohya")[0])])
    assert lora_calls(model) == []
    assert not torch.equal(draw(model), plain)
    model.use_loras([])
    assert torch.equal(draw(model), plain)


def test_use_loras_that_nunchaku_refuses_leaves_those_before(
    load, put_lora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(loras_dir=tmp_path)
    first = put_lora(formats.kohya(formats.make_known(1))[0])
    second = put_lora(formats.kohya(formats.make_known(2))[0])
    model.use_loras([first])
    before, _ = lora_calls(model)
    original = type(model._image.transformer).update_lora_params
    refused: list[Any] = []

    def refuse_once(transformer: Any, tensors: Any) -> None:
        if not refused:
            refused.append(tensors)
            raise RuntimeError("out of shared memory")
        original(transformer, tensors)

    monkeypatch.setattr(type(model._image.transformer), "update_lora_params", refuse_once)
    with pytest.raises(RuntimeError, match="shared memory"):
        model.use_loras([second])
    after = lora_calls(model)[-2]
    assert after[0] == "update_lora_params"
    assert {name: id(tensor) for name, tensor in after[1].items()} == {
        name: id(tensor) for name, tensor in before[1].items()
    }


def test_stand_in_checks_what_the_real_one_checks(install) -> None:
    """A stand-in that accepts anything would prove nothing."""
    install("right")
    nunchaku = importlib.import_module("nunchaku")
    with pytest.raises(AssertionError):
        nunchaku.NunchakuFluxTransformer2dModel.from_pretrained("x", dtype=torch.bfloat16)
    with pytest.raises(AssertionError):
        nunchaku.NunchakuFluxTransformer2dModel.from_pretrained("nunchaku-tech/repository/file")


# The wheel


@pytest.mark.parametrize("python", support.PYTHONS, ids=str)
def test_wheel_is_named_as_the_release_names_it(python: tuple[int, int]) -> None:
    tag = f"cp{python[0]}{python[1]}"
    name = f"nunchaku-1.2.1+cu13.0torch2.11-{tag}-{tag}-linux_x86_64.whl"
    assert support.wheel_url(python).endswith(f"/releases/download/v1.2.1/{name}")
    assert support.why_no_wheel(python, "Linux", "x86_64") is None


@pytest.mark.parametrize(
    ("python", "system", "machine", "named"),
    [
        ((3, 14), "Linux", "x86_64", "Python 3.14"),
        ((3, 12), "Linux", "aarch64", "Linux on aarch64"),
        ((3, 12), "Darwin", "arm64", "Darwin on arm64"),
    ],
)
def test_platform_without_a_wheel_is_named(python, system: str, machine: str, named: str) -> None:
    assert named in support.why_no_wheel(python, system, machine)


def test_install_command_for_a_driver_that_stops_at_cuda_12_takes_other_builds() -> None:
    command = support.install_command((3, 12), (12, 8))
    assert "https://download.pytorch.org/whl/cu128" in command
    assert "nunchaku-1.2.1+cu12.8torch2.11-cp312-cp312-linux_x86_64.whl" in command
    assert support.install_command((3, 12), (13, 0)) == support.install_command((3, 12))


@pytest.mark.parametrize(
    ("which", "found"), [("right", None), ("wrong", "unrelated"), ("", "not installed")]
)
def test_folder_of_packages_is_judged_without_running_it(
    tmp_path: Path, which: str, found: str | None
) -> None:
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    shutil.copytree(STAND_IN / which, packages) if which else packages.mkdir(parents=True)
    (packages / "torch").mkdir()
    (packages / "torch" / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    (packages / "torch-2.11.0.dist-info").mkdir()
    (packages / "torch-2.11.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")
    assert support.site_packages(tmp_path / "venv") == [str(packages)]
    reason = support.why_no_package([str(packages)])
    assert reason is None if found is None else found in reason
    if which == "wrong":
        assert f"{tmp_path}/venv/bin/python -m pip uninstall nunchaku" in reason


def test_folder_with_a_torch_of_another_cuda_is_refused(tmp_path: Path) -> None:
    shutil.copytree(STAND_IN / "right", tmp_path, dirs_exist_ok=True)
    (tmp_path / "torch-2.11.0.dist-info").mkdir()
    (tmp_path / "torch-2.11.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.11.0\n")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    assert "comes with CUDA 12.8" in support.why_no_package([str(tmp_path)])


def test_folder_without_torch_says_so(tmp_path: Path) -> None:
    shutil.copytree(STAND_IN / "right", tmp_path, dirs_exist_ok=True)
    assert "no torch is installed" in support.why_no_package([str(tmp_path)])
