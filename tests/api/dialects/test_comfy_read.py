"""What is read of a ComfyUI prompt, and how one is refused that cannot be drawn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.dialects.comfy_graph import MAX_NODES, GraphRefused
from api.dialects.comfy_nodes import NODES, object_info
from api.dialects.comfy_read import Found, read
from tests.api.dialects.comfy_prompts import (
    Prompt,
    custom,
    ksampler,
    node,
    with_image,
    with_lora,
)


def refused(prompt: Any) -> GraphRefused:
    with pytest.raises(GraphRefused) as raised:
        read(prompt)
    return raised.value


def changed(key: str, **inputs: Any) -> Prompt:
    prompt = ksampler()
    prompt[key]["inputs"] |= inputs
    return prompt


def test_ksampler_is_one_request() -> None:
    found = read(ksampler("a red balloon"))
    assert found.values == {
        "prompt": "a red balloon",
        "seed": 5,
        "num_inference_steps": 4,
        "width": 128,
        "height": 144,
        "num_images": 1,
        "cfg": 1.0,
    }
    assert (found.model_name, found.sampler, found.decoder) == ("embedded", "3", "8")
    assert found.outputs == ["9"]


def outcome(prompt: Prompt) -> Any:
    try:
        return read(prompt)
    except GraphRefused as error:
        return error.node_errors


@pytest.mark.parametrize(
    "prompt", [ksampler("a cat"), custom("a cat"), with_lora(ksampler(), "sepia.safetensors", 0.8)]
)
def test_null_means_what_is_left_out(prompt: Prompt) -> None:
    for key, each in prompt.items():
        for name in list(each["inputs"]):
            rest = {other: value for other, value in each["inputs"].items() if other != name}
            left_out = prompt | {key: each | {"inputs": rest}}
            null = prompt | {key: each | {"inputs": rest | {name: None}}}
            assert outcome(null) == outcome(left_out), (key, name)


def test_custom_sampler_is_one_request() -> None:
    found = read(custom("a cat"))
    assert found.values == {
        "prompt": "a cat",
        "seed": 219670278747233,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "width": 128,
        "height": 128,
        "num_images": 1,
    }
    assert found.model_name == "embedded.safetensors"


def test_negative_prompt_acts_through_a_cfg_over_one() -> None:
    prompt = ksampler(cfg=3.0)
    assert "negative_prompt" not in read(prompt).values
    prompt["7"]["inputs"]["text"] = "fog"
    assert read(prompt).values["negative_prompt"] == "fog"
    prompt["3"]["inputs"]["cfg"] = 1.0
    assert "negative_prompt" not in read(prompt).values


def test_negative_prompt_that_is_zeroed_out_is_none() -> None:
    prompt = ksampler(cfg=3.0, negative=["20", 0])
    prompt["20"] = node("ConditioningZeroOut", conditioning=["6", 0])
    assert "negative_prompt" not in read(prompt).values


def test_cfg_guider_has_both_prompts() -> None:
    prompt = custom("a cat")
    prompt["22"] = node(
        "CFGGuider", model=["30", 0], positive=["26", 0], negative=["40", 0], cfg=2.5
    )
    prompt["40"] = node("CLIPTextEncode", text="fog", clip=["11", 0])
    values = read(prompt).values
    assert (values["prompt"], values["negative_prompt"], values["cfg"]) == ("a cat", "fog", 2.5)


def test_loras_are_in_the_order_from_the_model() -> None:
    prompt = with_lora(ksampler(), "sepia.safetensors", 0.8)
    prompt["41"] = node(
        "LoraLoaderModelOnly",
        model=["40", 0],
        lora_name="styles\\sketch.safetensors",
        strength_model=-0.5,
    )
    prompt["3"]["inputs"]["model"] = ["41", 0]
    assert read(prompt).values["loras"] == [
        {"name": "sepia", "weight": 0.8},
        {"name": "sketch", "weight": -0.5},
    ]


def test_guidance_next_to_the_sampler_acts() -> None:
    prompt = ksampler(positive=["20", 0])
    prompt["20"] = node("FluxGuidance", conditioning=["21", 0], guidance=2.0)
    prompt["21"] = node(
        "CLIPTextEncodeFlux", clip=["4", 1], clip_l="a", t5xxl="a long text", guidance=4.0
    )
    values = read(prompt).values
    assert (values["guidance_scale"], values["prompt"]) == (2.0, "a long text")


def test_picture_to_begin_with() -> None:
    found = read(with_image(ksampler(), "a.png", 0.6))
    assert (found.image, found.values["strength"]) == ("a.png", 0.6)
    assert "width" not in found.values


def test_mask_is_what_is_transparent_or_a_channel() -> None:
    prompt = with_image(ksampler(), "a.png", 1.0)
    prompt["52"] = node("SetLatentNoiseMask", samples=["51", 0], mask=["50", 1])
    prompt["3"]["inputs"]["latent_image"] = ["52", 0]
    assert read(prompt).mask == ("a.png", "alpha")
    prompt["53"] = node("LoadImageMask", image="m.png", channel="red")
    prompt["52"]["inputs"]["mask"] = ["53", 0]
    assert read(prompt).mask == ("m.png", "red")


def test_inpainting_conditioning_has_texts_picture_and_mask() -> None:
    prompt = with_image(ksampler("a cup", cfg=2.0), "a.png", 1.0)
    prompt["7"]["inputs"]["text"] = "fog"
    prompt["60"] = node(
        "InpaintModelConditioning",
        positive=["6", 0],
        negative=["7", 0],
        vae=["4", 2],
        pixels=["50", 0],
        mask=["50", 1],
        noise_mask=True,
    )
    prompt["3"]["inputs"] |= {
        "positive": ["60", 0],
        "negative": ["60", 1],
        "latent_image": ["60", 2],
    }
    found = read(prompt)
    assert (found.image, found.mask) == ("a.png", ("a.png", "alpha"))
    assert (found.values["prompt"], found.values["negative_prompt"]) == ("a cup", "fog")


def test_reference_latents_are_pictures_to_look_at() -> None:
    prompt = ksampler(positive=["70", 0])
    prompt["70"] = node("ReferenceLatent", conditioning=["71", 0], latent=["73", 0])
    prompt["71"] = node("ReferenceLatent", conditioning=["6", 0], latent=["74", 0])
    prompt["72"] = node("FluxKontextImageScale", image=["75", 0])
    prompt["73"] = node("VAEEncode", pixels=["72", 0], vae=["4", 2])
    prompt["74"] = node("VAEEncode", pixels=["76", 0], vae=["4", 2])
    prompt["75"] = node("LoadImage", image="second.png")
    prompt["76"] = node("LoadImage", image="first.png")
    assert read(prompt).references == ["first.png", "second.png"]


def test_primitives_give_values() -> None:
    prompt = ksampler(seed=["80", 0], steps=["81", 0])
    prompt["80"] = node("PrimitiveInt", value=77)
    prompt["81"] = node("PrimitiveInt", value=["82", 0])
    prompt["82"] = node("PrimitiveInt", value=9)
    values = read(prompt).values
    assert (values["seed"], values["num_inference_steps"]) == (77, 9)


def test_several_outputs_of_one_picture() -> None:
    prompt = ksampler()
    prompt["10"] = node("PreviewImage", images=["8", 0])
    assert read(prompt).outputs == ["9", "10"]
    assert read(prompt, ["10"]).outputs == ["10"]


# Refusals


@pytest.mark.parametrize("prompt", [None, {}, [], "x", 1])
def test_prompt_that_is_none_is_refused(prompt: Any) -> None:
    assert refused(prompt).code == "no_prompt"


@pytest.mark.parametrize("data", [None, 1, [], {}, {"class_type": []}, {"class_type": "KSampler"}])
def test_node_that_is_none_is_refused_by_its_id(data: Any) -> None:
    prompt = ksampler()
    prompt["3"] = data
    assert list(refused(prompt).node_errors) == ["3"]


def test_node_that_is_not_known_is_refused_by_name_also_where_nothing_leads_to_it() -> None:
    prompt = ksampler()
    prompt["99"] = node("FaceDetailer", image=["8", 0])
    error = refused(prompt)
    [entry] = error.node_errors["99"]["errors"]
    assert (entry["type"], entry["details"]) == ("missing_node_type", "FaceDetailer")
    assert error.node_errors["99"]["class_type"] == "FaceDetailer"
    assert "FaceDetailer" in error.message


@pytest.mark.parametrize(
    ("prompt", "place", "kind"),
    [
        (changed("3", steps=0), "3", "value_smaller_than_min"),
        (changed("3", steps=101), "3", "value_bigger_than_max"),
        (changed("3", steps="many"), "3", "invalid_input_type"),
        (changed("3", steps=1.5), "3", "invalid_input_type"),
        (changed("3", seed=-1), "3", "value_smaller_than_min"),
        (changed("3", seed=True), "3", "invalid_input_type"),
        (changed("3", seed=10**400), "3", "value_bigger_than_max"),
        (changed("3", cfg=-(10**400)), "3", "value_smaller_than_min"),
        (changed("3", cfg=float("nan")), "3", "invalid_input_type"),
        (changed("3", denoise=0.5), "3", "value_smaller_than_min"),
        (changed("3", model=["4", 1]), "3", "return_type_mismatch"),
        (changed("3", model=["4", 7]), "3", "return_type_mismatch"),
        (changed("3", model=["44", 0]), "3", "bad_linked_input"),
        (changed("3", model=["4"]), "3", "bad_linked_input"),
        (changed("3", model=[4, 0]), "3", "bad_linked_input"),
        (changed("3", model="embedded"), "3", "bad_linked_input"),
        (changed("3", model=None), "3", "required_input_missing"),
        (changed("3", latent_image=["3", 0]), None, "dependency_cycle"),
        (changed("4", ckpt_name=None), "4", "required_input_missing"),
        (changed("5", width=8), "5", "value_smaller_than_min"),
        (changed("5", batch_size=9), "5", "value_bigger_than_max"),
        (changed("6", text=["4", 0]), "6", "return_type_mismatch"),
        (changed("6", text=5), "6", "invalid_input_type"),
        (changed("9", images=["5", 0]), "9", "return_type_mismatch"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_input_that_is_wrong_is_told_at_its_node(
    prompt: Prompt, place: str | None, kind: str
) -> None:
    error = refused(prompt)
    if place is None:
        assert error.code == kind
    else:
        assert [entry["type"] for entry in error.node_errors[place]["errors"]] == [kind]
    json.dumps(error.node_errors, allow_nan=False)


def test_several_samplers_are_refused() -> None:
    prompt = ksampler()
    prompt |= {
        "103": {**prompt["3"], "inputs": {**prompt["3"]["inputs"], "seed": 6}},
        "108": node("VAEDecode", samples=["103", 0], vae=["4", 2]),
        "109": node("SaveImage", images=["108", 0], filename_prefix="x"),
    }
    [entry] = refused(prompt).node_errors["103"]["errors"]
    assert entry["type"] == "several_samplers"


def test_picture_that_nothing_draws_is_refused() -> None:
    prompt = {
        "1": node("LoadImage", image="a.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    assert refused(prompt).node_errors["2"]["errors"][0]["type"] == "nothing_drawn"


def test_prompt_without_an_output_is_refused() -> None:
    prompt = ksampler()
    del prompt["9"]
    assert refused(prompt).code == "prompt_no_outputs"


def test_graph_that_is_too_large_is_refused() -> None:
    prompt = ksampler()
    prompt |= {f"x{number}": node("PreviewImage", images=["8", 0]) for number in range(MAX_NODES)}
    assert refused(prompt).code == "invalid_prompt"


def test_long_chain_is_read() -> None:
    prompt = ksampler()
    last = ["6", 0]
    for number in range(150):
        prompt[f"g{number}"] = node("FluxGuidance", conditioning=last, guidance=3.0)
        last = [f"g{number}", 0]
    prompt["3"]["inputs"]["positive"] = last
    assert isinstance(read(prompt), Found)


def test_object_info_describes_every_node() -> None:
    there = {"models": ["embedded"], "loras": ["sepia.safetensors"], "images": []}
    for name in NODES:
        info = object_info(name, there)
        assert set(info["input"]) <= {"required", "optional"}
        assert len(info["output"]) == len(info["output_is_list"])
    info = object_info("KSampler", there)
    assert info["input"]["required"]["sampler_name"][0] == ["euler"]
    assert info["input"]["required"]["steps"] == ["INT", {"default": 20, "min": 1, "max": 100}]
    assert object_info("SaveImage", there)["output_node"] is True
    unet = object_info("UNETLoader", there)["input"]["required"]["unet_name"]
    assert unet[0] == ["embedded"]
