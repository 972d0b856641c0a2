"""`compose_lora`: ranks side by side, each LoRA's strength in its own down matrix."""

import torch
from safetensors.torch import load_file, save_file


def is_nunchaku_format(lora):
    tensors = load_file(lora) if isinstance(lora, str) else lora
    return any(".mlp_fc" in name or "mlp_context_fc1" in name for name in tensors)


def compose_lora(loras, output_path=None):
    composed = {}
    for lora, strength in loras:
        assert not is_nunchaku_format(lora)
        for name, tensor in (load_file(lora) if isinstance(lora, str) else lora).items():
            is_down = "lora_A" in name
            part = tensor * strength if is_down else tensor
            before = [composed[name]] if name in composed else []
            composed[name] = torch.cat([*before, part], dim=0 if is_down else 1)
    if output_path is not None:
        save_file(composed, output_path)
    return composed
