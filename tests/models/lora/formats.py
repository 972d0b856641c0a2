"""One known LoRA written in every format, with the shapes of the embedded model.

The LoRA is made in the coarsest terms all formats share: q, k and v of a layer have one A, as a fused
layer has. What is expected of every file is `KNOWN.deltas`: scale · B · A by layer of diffusers' model.
Names are built here from each trainer's own scheme and from nothing in `models/lora`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, MLP, RANK, ALPHA = 192, 768, 4, 2.0
DOUBLE, SINGLE = 2, 4
SCALE = ALPHA / RANK

State = dict[str, torch.Tensor]

# BFL's name in a block: diffusers' layers it is made of, inputs, outputs of each
DOUBLE_LAYERS = {
    "img_attn.qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), HIDDEN, (HIDDEN,) * 3),
    "img_attn.proj": (("attn.to_out.0",), HIDDEN, (HIDDEN,)),
    "txt_attn.qkv": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), HIDDEN, (HIDDEN,) * 3),
    "txt_attn.proj": (("attn.to_add_out",), HIDDEN, (HIDDEN,)),
    "img_mlp.0": (("ff.net.0.proj",), HIDDEN, (MLP,)),
    "img_mlp.2": (("ff.net.2",), MLP, (HIDDEN,)),
    "txt_mlp.0": (("ff_context.net.0.proj",), HIDDEN, (MLP,)),
    "txt_mlp.2": (("ff_context.net.2",), MLP, (HIDDEN,)),
    "img_mod.lin": (("norm1.linear",), HIDDEN, (6 * HIDDEN,)),
    "txt_mod.lin": (("norm1_context.linear",), HIDDEN, (6 * HIDDEN,)),
}  # fmt: skip
SINGLE_LAYERS = {
    "linear1": (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), HIDDEN, (HIDDEN, HIDDEN, HIDDEN, MLP)),
    "linear2": (("proj_out",), HIDDEN + MLP, (HIDDEN,)),
    "modulation.lin": (("norm.linear",), HIDDEN, (3 * HIDDEN,)),
}  # fmt: skip
ONCE = {
    "img_in": ("x_embedder", 64, HIDDEN),
    "txt_in": ("context_embedder", 128, HIDDEN),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1", 256, HIDDEN),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2", HIDDEN, HIDDEN),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1", 96, HIDDEN),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2", HIDDEN, HIDDEN),
    "final_layer.linear": ("proj_out", HIDDEN, 64),
    "final_layer.adaLN_modulation.1": ("norm_out.linear", HIDDEN, 2 * HIDDEN),
}
CLIP = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")  # fmt: skip
T5 = ("SelfAttention.q", "SelfAttention.o", "DenseReluDense.wi_0", "DenseReluDense.wo")


@dataclass
class Fused:
    """One module in BFL's terms: up is split by rows over diffusers' layers."""

    bfl: str
    layers: tuple[str, ...]
    rows: tuple[int, ...]
    down: torch.Tensor  # (r, in)
    up: torch.Tensor  # (sum of rows, r)


@dataclass
class Known:
    """The LoRA: its modules, and what it adds to each layer of diffusers' model."""

    modules: list[Fused]
    deltas: dict[str, torch.Tensor] = field(default_factory=dict)

    def parts(self) -> list[tuple[Fused, int, str, torch.Tensor]]:
        """(module, index, layer, up) of every layer."""
        return [
            (m, i, layer, up)
            for m in self.modules
            for i, (layer, up) in enumerate(zip(m.layers, m.up.split(m.rows), strict=True))
        ]


def make_known(seed: int = 7, *, only: Callable[[str], bool] = lambda bfl: True) -> Known:
    """Random factors for every linear layer of the transformer whose BFL name `only` lets through."""
    generator = torch.Generator().manual_seed(seed)
    shapes: list[tuple[str, tuple[str, ...], int, tuple[int, ...]]] = []
    for i in range(DOUBLE):
        for name, (layers, inputs, rows) in DOUBLE_LAYERS.items():
            full = tuple(f"transformer_blocks.{i}.{layer}" for layer in layers)
            shapes.append((f"double_blocks.{i}.{name}", full, inputs, rows))
    for i in range(SINGLE):
        for name, (layers, inputs, rows) in SINGLE_LAYERS.items():
            full = tuple(f"single_transformer_blocks.{i}.{layer}" for layer in layers)
            shapes.append((f"single_blocks.{i}.{name}", full, inputs, rows))
    shapes += [(bfl, (layer,), inputs, (rows,)) for bfl, (layer, inputs, rows) in ONCE.items()]
    modules = [
        Fused(
            bfl, layers, rows,
            torch.randn(RANK, inputs, generator=generator) / inputs**0.5,
            torch.randn(sum(rows), RANK, generator=generator) / RANK**0.5,
        )
        for bfl, layers, inputs, rows in shapes
        if only(bfl)
    ]  # fmt: skip
    known = Known(modules)
    for module, _, layer, up in known.parts():
        if layer == "norm_out.linear":  # BFL has shift before scale, diffusers scale before shift
            up = up.roll(HIDDEN, 0)
        known.deltas[f"transformer.{layer}"] = SCALE * up @ module.down
    return known


def _in_diffusers(known: Known) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(layer, down, up) with the rows in diffusers' order."""
    return [
        (layer, m.down, up.roll(HIDDEN, 0) if layer == "norm_out.linear" else up)
        for m, _, layer, up in known.parts()
    ]


def diffusers(known: Known) -> tuple[State, dict[str, str]]:
    """As diffusers saves it: PEFT's factors, alpha in the metadata."""
    state = {}
    for layer, down, up in _in_diffusers(known):
        state[f"transformer.{layer}.lora_A.weight"] = down
        state[f"transformer.{layer}.lora_B.weight"] = up
    config = {
        "transformer.r": RANK,
        "transformer.lora_alpha": ALPHA,
        "transformer.use_rslora": False,
        "transformer.target_modules": sorted(layer for layer, _, _ in _in_diffusers(known)),
    }
    return state, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def peft(known: Known) -> tuple[State, dict[str, str]]:
    """As PEFT saves a transformer with a named adapter; alpha as tensors."""
    state = {}
    for layer, down, up in _in_diffusers(known):
        state[f"base_model.model.{layer}.lora_A.default.weight"] = down
        state[f"base_model.model.{layer}.lora_B.default.weight"] = up
        state[f"base_model.model.{layer}.alpha"] = torch.tensor(ALPHA)
    return state, {}


def kohya(known: Known) -> tuple[State, dict[str, str]]:
    """sd-scripts: `lora_unet_` and BFL's names with underscores."""
    state = {}
    for m in known.modules:
        name = f"lora_unet_{m.bfl.replace('.', '_')}"
        state[f"{name}.lora_down.weight"] = m.down
        state[f"{name}.lora_up.weight"] = m.up
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    tags = {"10_gold statue": {"gold statue": 20, "outdoors": 3}}
    metadata = {
        "ss_base_model_version": "flux1", "ss_network_alpha": str(ALPHA), "ss_network_dim": str(RANK),
        "ss_tag_frequency": json.dumps(tags),
        "ss_dataset_dirs": json.dumps({"10_gold statue": {"n_repeats": 10, "img_count": 20}}),
    }  # fmt: skip
    return state, metadata


def kohya_split(known: Known) -> tuple[State, dict[str, str]]:
    """sd-scripts with split_qkv: fused layers hold separate LoRAs, block-diagonal in up."""
    state = {}
    for m in known.modules:
        name, count = f"lora_unet_{m.bfl.replace('.', '_')}", len(m.layers)
        state[f"{name}.lora_down.weight"] = m.down.repeat(count, 1)
        state[f"{name}.lora_up.weight"] = torch.block_diag(*m.up.split(m.rows))
        state[f"{name}.alpha"] = torch.tensor(ALPHA * count)
    return state, {}


def bfl(known: Known) -> tuple[State, dict[str, str]]:
    """AI-Toolkit and ComfyUI: BFL's names with dots under `diffusion_model.`."""
    state = {}
    for m in known.modules:
        state[f"diffusion_model.{m.bfl}.lora_A.weight"] = m.down
        state[f"diffusion_model.{m.bfl}.lora_B.weight"] = m.up * SCALE
    return state, {"software": json.dumps({"name": "ai-toolkit"}), "trigger_word": "g0ld"}


def bfl_bare(known: Known) -> tuple[State, dict[str, str]]:
    """BFL's names as fal writes them, under PEFT's prefix."""
    state, _ = bfl(known)
    return {k.replace("diffusion_model.", "base_model.model."): v for k, v in state.items()}, {}


def onetrainer(known: Known) -> tuple[State, dict[str, str]]:
    """diffusers' names with underscores under `lora_transformer_`."""
    state = {}
    for layer, down, up in _in_diffusers(known):
        name = f"lora_transformer_{layer.replace('.', '_')}"
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    return state, {"ot_branch": "master"}


def onetrainer_bfl(known: Known) -> tuple[State, dict[str, str]]:
    """OneTrainer's newer names: BFL's, with q, k, v and MLP numbered."""
    state = {}
    for m, i, _, up in known.parts():
        name = f"transformer.{m.bfl}" + (f".{i}" if len(m.layers) > 1 else "")
        state[f"{name}.lora_down.weight"] = m.down
        state[f"{name}.lora_up.weight"] = up
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    return state, {}


def lycoris(known: Known) -> tuple[State, dict[str, str]]:
    """LyCORIS with the algorithm "lora": diffusers' names with underscores under `lycoris_`."""
    state, _ = onetrainer(known)
    return {k.replace("lora_transformer_", "lycoris_"): v for k, v in state.items()}, {}


def xlabs(known: Known) -> tuple[State, dict[str, str]]:
    """XLabs: attention processors, no alpha; for LoRAs of attention alone (`XLABS_LAYERS`)."""
    names = {
        "img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2",
        "img_attn.proj": "proj_lora1", "txt_attn.proj": "proj_lora2",
    }  # fmt: skip
    state = {}
    for m in known.modules:
        block, index, layer = m.bfl.split(".", 2)
        name = f"{block}.{index}.processor.{names[layer]}"
        state[f"{name}.down.weight"] = m.down
        state[f"{name}.up.weight"] = m.up * SCALE
    return state, {}


def is_for_xlabs(bfl_name: str) -> bool:
    return "_attn." in bfl_name


FORMATS: Mapping[str, tuple[Callable[[Known], tuple[State, dict[str, str]]], str]] = {
    "diffusers": (diffusers, "diffusers"),
    "peft": (peft, "diffusers"),
    "kohya": (kohya, "kohya"),
    "kohya_split": (kohya_split, "kohya"),
    "bfl": (bfl, "bfl"),
    "bfl_bare": (bfl_bare, "bfl"),
    "onetrainer": (onetrainer, "onetrainer"),
    "onetrainer_bfl": (onetrainer_bfl, "onetrainer"),
    "lycoris": (lycoris, "lycoris"),
    "xlabs": (xlabs, "xlabs"),
}


def write(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> Path:
    """Save a state dict; equal tensors under several names are copied, as the format wants."""
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path, dict(metadata or {}))
    return path


def write_known(path: Path, form: str) -> tuple[Path, Known]:
    """The known LoRA in a format of FORMATS, and the LoRA; XLabs has attention alone."""
    known = make_known(only=is_for_xlabs) if form == "xlabs" else make_known()
    return write(path, *FORMATS[form][0](known)), known


def lokr(seed: int = 3, *, whole: bool = False) -> tuple[State, dict[str, torch.Tensor]]:
    """A LoKr in LyCORIS' names on layers that are not fused; deltas by numpy-like definition."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    deltas = {}
    for layer, rows, columns in (
        ("transformer_blocks.0.attn.to_q", HIDDEN, HIDDEN), ("single_transformer_blocks.1.proj_mlp", MLP, HIDDEN),
    ):  # fmt: skip
        name = f"lycoris_{layer.replace('.', '_')}"
        first = torch.randn(4, 4, generator=generator) / 2
        left = torch.randn(rows // 4, RANK, generator=generator) / 4
        right = torch.randn(RANK, columns // 4, generator=generator) / 4
        state[f"{name}.lokr_w1"] = first
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
        if whole:
            state[f"{name}.lokr_w2"] = left @ right
        else:
            state[f"{name}.lokr_w2_a"], state[f"{name}.lokr_w2_b"] = left, right
        scale = 1.0 if whole else SCALE
        deltas[f"transformer.{layer}"] = scale * torch.kron(first, left @ right)
    return state, deltas


def loha(seed: int = 4) -> tuple[State, dict[str, torch.Tensor]]:
    """A LoHa in Kohya's names, on a fused and on a plain layer."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    deltas = {}
    for bfl_name, layers, inputs, rows in (
        ("double_blocks.1.img_attn.qkv", DOUBLE_LAYERS["img_attn.qkv"][0], HIDDEN, (HIDDEN,) * 3),
        ("double_blocks.0.txt_mlp.2", DOUBLE_LAYERS["txt_mlp.2"][0], MLP, (HIDDEN,)),
    ):
        name = f"lora_unet_{bfl_name.replace('.', '_')}"
        factors = [
            torch.randn(shape, generator=generator) / 4
            for shape in ((sum(rows), RANK), (RANK, inputs), (sum(rows), RANK), (RANK, inputs))
        ]
        parts = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        state |= {f"{name}.{part}": value for part, value in zip(parts, factors, strict=True)}
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
        whole = SCALE * (factors[0] @ factors[1]) * (factors[2] @ factors[3])
        block = bfl_name.split(".")[1]
        for layer, part in zip(layers, whole.split(rows), strict=True):
            deltas[f"transformer.transformer_blocks.{block}.{layer}"] = part
    return state, deltas


def text_encoders(naming: str, seed: int = 5) -> tuple[State, dict[str, torch.Tensor]]:
    """CLIP and T5 parts as Kohya, OneTrainer or diffusers name them; embedded model's shapes."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = {"kohya": ("lora_te1", "lora_te3"), "onetrainer": ("lora_te1", "lora_te2")}
    state: State = {}
    deltas = {}
    wanted = [(0, f"encoder.layers.0.{layer}", 96, 192) for layer in CLIP]
    wanted += [
        (1, f"encoder.block.1.layer.{int('Dense' in layer)}.{layer}", 128, 256) for layer in T5
    ]
    for encoder, layer, width, wide in wanted:
        rows = wide if layer.endswith(("fc1", "wi_0")) else width
        columns = wide if layer.endswith(("fc2", "wo")) else width
        down = torch.randn(RANK, columns, generator=generator)
        up = torch.randn(rows, RANK, generator=generator)
        component = ("text_encoder", "text_encoder_2")[encoder]
        deltas[f"{component}.{layer}"] = SCALE * up @ down
        full = layer if encoder else f"text_model.{layer}"
        if naming == "diffusers":
            name = f"{component}.{full}"
            state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * SCALE}
            continue
        name = f"{prefixes[naming][encoder]}_{full.replace('.', '_')}"
        state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    return state, deltas
