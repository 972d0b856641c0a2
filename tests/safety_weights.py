"""Checkers of real classes whose weights say one thing: a picture is not safe when it is red."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, ViTConfig, ViTForImageClassification

SIDE = 16


def classifier(folder: Path, *, labels: tuple[str, str] = ("normal", "nsfw")) -> Path:
    """A vision transformer of one patch, which reads how much redder than green and blue a picture is."""
    config = ViTConfig(
        image_size=SIDE, patch_size=SIDE, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=4, id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        vit = model.vit
        # The patch's token is (redness, -redness, 0, 0), and the other token takes it over whole.
        weight = vit.embeddings.patch_embeddings.projection.weight  # (4, 3, SIDE, SIDE)
        for sign, row in ((1.0, 0), (-1.0, 1)):
            weight[row, 0] = sign / SIDE**2
            weight[row, 1:] = -sign / 2 / SIDE**2
        for name, parameter in vit.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            if name.endswith(("v_proj.weight", "value.weight", "o_proj.weight")) or (
                "attention.output.dense.weight" in name
            ):
                parameter.copy_(torch.eye(4))
        model.classifier.weight[1, 0] = 4.0
        model.classifier.bias[1] = -3.0
    model.save_pretrained(folder)
    recipe = {
        "do_resize": True, "do_normalize": True, "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    return folder


def of_stable_diffusion(folder: Path, *, flags: bool) -> Path:
    """Its checker, random, with thresholds that every picture passes, or none."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "image_size": 224, "patch_size": 112,
    }  # fmt: skip
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=4)
    model = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        model.concept_embeds_weights.fill_(-2.0 if flags else 2.0)
        model.special_care_embeds_weights.fill_(2.0)
    model.save_pretrained(folder)
    return folder
