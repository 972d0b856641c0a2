"""The two models: diffusers' and transformers' own, read from a file in nunchaku's layout."""

import json
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from transformers import T5Config, T5EncoderModel


def _read(path):
    path = Path(path)
    if not path.exists():
        # The real one takes the text for a repository of the Hub now and fetches from there.
        raise AssertionError(f"{path} is no file: the engine is to hand over files that are here")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


class NunchakuFluxTransformer2dModel(FluxTransformer2DModel):
    """`calls` is what was asked of it, in order."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        unknown = kwargs.keys() - {
            "device",
            "torch_dtype",
            "precision",
            "offload",
            "return_metadata",
        }
        assert not unknown, unknown
        device = torch.device(kwargs.get("device", "cuda"))
        tensors, metadata = _read(pretrained_model_name_or_path)
        transformer = cls.from_config(json.loads(metadata["config"]))
        weights = json.loads(metadata["quantization_config"])["weight"]["dtype"]
        if weights not in ("int4", "fp4_e2m1_all"):
            raise ValueError(f"Unsupported quantization dtype: {weights}")
        transformer.load_state_dict(tensors)
        transformer.calls = [("from_pretrained", {**kwargs, "device": device})]
        return transformer.to(device=device, dtype=kwargs.get("torch_dtype", torch.bfloat16))

    def set_attention_impl(self, impl, attn_func=None):
        assert impl in ("flashattn2", "nunchaku-fp16", "custom")
        self.calls.append(("set_attention_impl", impl))

    def update_lora_params(self, path_or_state_dict):
        assert isinstance(path_or_state_dict, str | dict), type(path_or_state_dict)
        self.calls.append(("update_lora_params", path_or_state_dict))

    def set_lora_strength(self, strength=1):
        self.calls.append(("set_lora_strength", strength))

    def reset_lora(self):
        self.calls.append(("reset_lora",))


class NunchakuT5EncoderModel(T5EncoderModel):
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        assert not kwargs.keys() - {"device", "torch_dtype"}, kwargs
        tensors, metadata = _read(pretrained_model_name_or_path)
        encoder = T5EncoderModel(T5Config(**json.loads(metadata["config"])))
        encoder.load_state_dict(tensors, strict=False)  # the embedding stands in it twice
        encoder.eval()
        return encoder.to(
            device=kwargs.get("device", "cuda"), dtype=kwargs.get("torch_dtype", torch.bfloat16)
        )
