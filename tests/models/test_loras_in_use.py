"""LoRAs on the embedded model, on both precisions: what a request's LoRAs do, and that nothing stays."""

from __future__ import annotations

import gc
import hashlib
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from config.errors import NotFound
from models.families import frugal
from models.fp4.linear import Fp4Linear
from models.lora.adapters import PeftAdapters
from models.lora.errors import BadLoraFile, LoraIncompatible
from models.lora.merged import MergedLoras
from models.lora.native import Native
from models.types import Drawing, LoraRef
from tests.models.flux1_drawing import draw, pixels, threads
from tests.models.lora import applied, formats
from tests.models.lora.applied import CLEAR, picture, put, put_known, request, reweighted

PRECISIONS = ("bf16", "fp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Callable[[str], Any]]:
    """The model of a precision, which every test leaves able to draw with any LoRAs."""
    with threads(1):
        yield cache(lambda precision: applied.load(precision, folder))


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, loaded: Callable[[str], Any]) -> Any:
    return loaded(request.param)


@pytest.fixture(scope="module")
def both(loaded: Callable[[str], Any]) -> tuple[Any, Any]:
    return loaded("bf16"), loaded("fp4")


@pytest.fixture(scope="module")
def first(loaded: Callable[[str], Any]) -> Callable[..., numpy.ndarray]:
    """A model's picture with some LoRAs as it was when they were first asked for: drawn once."""
    return cache(lambda model, refs=(): picture(model, refs))


@pytest.fixture(scope="module")
def fresh(folder: Path, sets, model: Any) -> dict[tuple[LoraRef, ...], list[bytes]]:
    """Of a model that has drawn nothing else: a picture without LoRAs, then with these and those."""
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    one = applied.load(precision, folder)
    drawn = {}
    for refs in ((), *sets[2:4]):
        if refs:
            one.use_loras(refs)
        drawn[refs] = pixels(one, request(refs))
    return drawn


@pytest.fixture(scope="module")
def style(folder: Path) -> LoraRef:
    return put_known(folder, seed=1, name="style")


@pytest.fixture(scope="module")
def other(folder: Path) -> LoraRef:
    return put_known(folder, "diffusers", seed=2, name="other", weight=-0.2)


@pytest.fixture(scope="module")
def text(folder: Path) -> LoraRef:
    return put(folder, formats.text_encoders("kohya")[0], name="text", weight=0.5)


@pytest.fixture(scope="module")
def lokr(folder: Path) -> LoraRef:
    return put(folder, formats.lokr()[0], name="lokr", weight=2.0)


@pytest.fixture(scope="module")
def sets(style, other, text, lokr) -> tuple[tuple[LoraRef, ...], ...]:
    return (), (style,), (style, other), (other, text), (lokr,)


def latents(model: Any, *drawings: Drawing) -> list[bytes]:
    """What is equal before it is decoded, one by one, is equal in the picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_decode", lambda row, request: row)
        return [row.numpy().tobytes() for row in draw(model, *drawings)]


# What they do


@pytest.mark.parametrize("factor", [1e20, 1e38])
def test_lora_that_is_too_strong_is_named_and_is_no_black_picture(
    model: Any, first, folder: Path, factor: float
) -> None:
    state, _ = formats.kohya(formats.make_known(only=lambda bfl: bfl == "single_blocks.0.linear2"))
    ref = put(folder, {k: v * factor for k, v in state.items() if "alpha" not in k}, name="loud")
    before = first(model)
    with pytest.raises(LoraIncompatible, match="too strong"):
        picture(model, (ref,))
    assert numpy.array_equal(picture(model), before)


def test_weight_0_and_no_lora_have_the_bytes_of_a_model_that_never_had_one(
    model: Any, style: LoraRef, text: LoraRef, fresh
) -> None:
    never = fresh[()]
    model.use_loras([style, text])
    assert pixels(model, request()) != never
    model.use_loras([])
    assert pixels(model, request()) == never
    (counted,) = model.use_loras([reweighted(style, 0.0)])
    assert pixels(model, request()) == never
    assert counted.matched_keys > 0


def test_effect_grows_with_the_weight_in_both_directions(model: Any, first, style: LoraRef) -> None:
    for sign in (1, -1):
        sizes = [
            numpy.abs(picture(model, (reweighted(style, sign * weight),)) - first(model)).mean()
            for weight in (0.05, 0.1, 0.2, 0.4)
        ]
        assert 0.3 < sizes[0] < sizes[1] < sizes[2] < sizes[3]


def test_both_precisions_change_the_picture_alike(both, style: LoraRef, other: LoraRef) -> None:
    changes: list[list[numpy.ndarray]] = [[], []]
    for prompt in ("a red balloon", "three sailboats at sunset"):
        how = {"prompt": prompt, "width": 128, "height": 128, "num_inference_steps": 4}
        for model, found in zip(both, changes, strict=True):
            plain = picture(model, (), **how)
            found += [picture(model, refs, **how) - plain for refs in ((style,), (style, other))]
    agreement = numpy.corrcoef(*(numpy.stack(some).ravel() for some in changes))[0, 1]
    assert agreement >= 0.95
    assert numpy.abs(changes[0]).mean() > 5


def test_order_of_a_request_decides_nothing_but_rounding(model: Any, first, style, other) -> None:
    difference = first(model, (style, other)) - picture(model, (other, style))
    assert numpy.abs(difference).max() <= 2


def test_lora_named_twice_acts_with_both_weights(model: Any, first, style: LoraRef) -> None:
    twice = (reweighted(style, 0.1), reweighted(style, CLEAR - 0.1))
    assert numpy.abs(picture(model, twice) - first(model, (style,))).max() <= 1
    taken_back = (reweighted(style, 0.1), reweighted(style, -0.1))
    assert numpy.array_equal(picture(model, taken_back), first(model))


def test_matches_are_counted_in_keys_of_the_file(model: Any, folder: Path) -> None:
    state = formats.kohya(formats.make_known(only=formats.is_for_xlabs))[0]
    strange = {f"lora_unet_double_blocks_9_img_attn_proj.{part}": tensor for part, tensor in (
        ("lora_down.weight", torch.ones(2, 192)), ("lora_up.weight", torch.ones(192, 2)),
    )}  # fmt: skip
    (found,) = model.use_loras([put(folder, state | strange)])
    assert (found.matched_keys, found.unmatched_keys) == (len(state), 2)


def test_trigger_words_are_encoded_before_the_prompt(model: Any, style: LoraRef) -> None:
    called = replace(style, trigger_words=("in a forest", "at night"))
    typed = picture(model, (style,), prompt="in a forest, at night, a red balloon")
    assert numpy.array_equal(picture(model, (called,), prompt="a red balloon"), typed)


@pytest.mark.parametrize("form", [*formats.FORMATS])
def test_every_format_gives_the_same_picture(
    model: Any, first, form: str, folder: Path, attention: LoraRef
) -> None:
    known = formats.make_known(only=formats.is_for_xlabs)
    ref = put(folder, *formats.FORMATS[form][0](known), weight=1.0)
    expected = first(model, (attention,))
    assert numpy.abs(expected - first(model)).max() > 5
    assert (
        numpy.abs(picture(model, (ref,)) - expected).max() <= 2
    ), "rounding of one format's scale in its weights"


@pytest.fixture(scope="module")
def attention(folder: Path) -> LoraRef:
    """What all formats can say."""
    known = formats.make_known(only=formats.is_for_xlabs)
    return put(folder, *formats.diffusers(known), weight=1.0)


@pytest.mark.parametrize("make", [formats.lokr, formats.loha])
def test_lokr_and_loha_change_what_their_low_rank_form_changes(
    model: Any, first, folder: Path, style: LoraRef, make
) -> None:
    """Alone it is PEFT's own in BF16, in company low rank."""
    ref = put(folder, make()[0], weight=2.0, name="lycoris")
    alone = picture(model, (ref,))
    carrier = model._loras._carrier
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(carrier, PeftAdapters):
            patch.setattr(carrier, "_native_of", lambda ref: None)
        model.use_loras([])
        as_low_rank = picture(model, (ref,))
    assert numpy.abs(alone - first(model)).max() > 5
    assert numpy.abs(alone - as_low_rank).max() <= 1
    assert numpy.abs(picture(model, (ref, style)) - first(model, (style,))).max() > 5


# That nothing stays


def every_pair(number: int) -> list[int]:
    """Each of so many after each once, itself too, in one line that ends where it begins."""
    turns = [
        (one, *(index for other in range(one + 1, number) for index in (one, other)))
        for one in range(number)
    ]
    return [*itertools.chain(*turns), 0]


def test_requests_alternating_5_sets_in_every_order_have_the_bytes_of_alone(
    sets, folder: Path, model: Any
) -> None:
    alone: dict[Any, list[bytes]] = {}
    for refs in sets:
        model.use_loras([])
        model.use_loras(refs)
        alone[refs] = latents(model, request(refs))
    assert len({found[0] for found in alone.values()}) == len(sets)
    tensors = count_tensors()
    order = every_pair(len(sets))
    assert set(itertools.pairwise(order)) == set(itertools.product(range(len(sets)), repeat=2))
    for number, index in enumerate(order):
        refs = sets[index]
        model.use_loras(refs)
        assert latents(model, request(refs)) == alone[refs], f"request {number}"
    model.use_loras(sets[-1])
    assert count_tensors() <= tensors


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_set_that_was_never_mixed_with_others_has_the_same_bytes(model: Any, sets, fresh) -> None:
    """In a process of its own, so to say: a model that has drawn nothing else."""
    for refs in sets:
        model.use_loras(refs)
    for refs in sets[2:4]:
        model.use_loras(refs)
        assert pixels(model, request(refs)) == fresh[refs]


@pytest.mark.parametrize("which", range(1, 5))
def test_batch_with_loras_has_the_bytes_of_alone(model: Any, sets, which: int) -> None:
    refs = sets[which]
    several = [
        request(refs, seed=seed, prompt=prompt, negative_prompt="fog")
        for seed, prompt in enumerate(("a red balloon", "two fish at night", ""))
    ]
    model.use_loras(refs)
    assert latents(model, *several) == [latents(model, one)[0] for one in several]


def test_same_text_with_other_text_encoders_is_encoded_again(
    model: Any, first, text: LoraRef
) -> None:
    plain, styled = first(model), picture(model, (text,))
    stronger = picture(model, (reweighted(text, 1.0),))
    assert not numpy.array_equal(plain, styled) and not numpy.array_equal(styled, stronger)
    assert numpy.array_equal(picture(model, (text,)), styled)


def test_same_text_with_another_style_is_not_encoded_again(
    model: Any, style: LoraRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = picture(model)
    monkeypatch.setattr(model._text, "encode_prompt", None)
    assert not numpy.array_equal(picture(model, (style,)), plain)


def test_text_encoders_on_another_device_take_theirs(folder: Path, sets, first, model: Any) -> None:
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    split = applied.load(precision, folder, "cpu", "cpu")
    refs = sets[3]
    assert numpy.array_equal(picture(split, refs), first(model, refs))


def test_frugal_drawing_with_loras_leaves_the_model_as_it_was(model: Any, first, sets) -> None:
    refs = sets[3]
    before, plain = first(model, refs), first(model)
    model.use_loras(refs)
    draw(model, request(refs), frugal=True)
    assert numpy.array_equal(picture(model, refs), before)
    assert numpy.array_equal(picture(model), plain)


def test_weights_that_wait_for_a_retry_take_loras_along(
    folder: Path, sets, first, model: Any
) -> None:
    """From the CPU to the CPU: every hook is at work, only nothing moves."""
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    waiting = applied.load(precision, folder)
    refs = sets[3]
    waiting.use_loras(refs)
    before = pixels(waiting, request(refs))
    weighty = waiting._weighty()
    frugal.enable_offloading(*weighty, prefetch=False)
    assert pixels(waiting, request(refs, prompt="another text, encoded now")) != before
    assert pixels(waiting, request(refs)) == before
    frugal.disable_offloading(*weighty)
    assert pixels(waiting, request(refs)) == before
    assert numpy.array_equal(picture(waiting), first(model))


def test_model_offloaded_for_good_changes_loras_beside_its_hooks(
    folder: Path, sets, first, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It carries them merged, whatever the precision: hooks know the layers there were."""
    original = frugal.enable_offloading
    monkeypatch.setattr(
        frugal, "enable_offloading", lambda *parts, prefetch: original(*parts, prefetch=False)
    )
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    waiting = applied.load(precision, folder)
    waiting.use_loras(sets[1])
    waiting.enable_offloading(torch.device("cpu"))
    assert isinstance(waiting._loras._carrier, MergedLoras)
    assert numpy.array_equal(picture(waiting), first(model))
    for refs in sets[1:4]:
        assert numpy.abs(picture(waiting, refs) - first(model, refs)).max() <= 2
    assert numpy.array_equal(picture(waiting), first(model))


def test_unload_with_loras_leaves_nothing_behind(folder: Path, sets, model: Any) -> None:
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    loaded = applied.load(precision, folder)
    for refs in sets:
        picture(loaded, refs)
    held = [loaded._loras, loaded._loras._carrier, loaded._opened, loaded._image.transformer]
    held += [next(loaded._image.transformer.parameters()), loaded._text.text_encoder]
    alive = [weakref.ref(thing) for thing in held]
    del held
    loaded.unload()
    gc.collect()
    assert [reference() for reference in alive if reference() is not None] == []


# What is refused, and what stays then


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (applied.flux2, "the LoRA is for FLUX.2 Klein 4B; this model is FLUX.1"),
        (applied.flux1_large, "12288 outputs and 3072 inputs; this model's has 768 and 192"),
        (
            lambda: {
                f"transformer.transformer_blocks.7.attn.to_q.lora_{part}.weight": torch.ones(shape)
                for part, shape in (("A", (2, 192)), ("B", (192, 2)))
            },
            "matches no layer of this model",
        ),
        (
            lambda: {"lora_unet_double_blocks_0_img_attn_proj.dora_scale": torch.ones(192, 1)}
            | formats.kohya(formats.make_known(only=formats.is_for_xlabs))[0],
            "DoRA, which cannot be applied",
        ),
    ],
    ids=["flux2", "shapes", "no match", "dora"],
)
def test_lora_that_does_not_fit_is_409_with_the_reason_and_those_before_stay(
    model: Any, first, folder: Path, style: LoraRef, state, said: str
) -> None:
    misfit = put(folder, state(), name="misfit")
    before = first(model, (style,))
    model.use_loras([style])
    for refs in ([misfit], [style, misfit]):
        with pytest.raises(LoraIncompatible) as caught:
            model.use_loras(refs)
        assert (caught.value.code, caught.value.status) == ("lora_incompatible", 409)
        assert caught.value.message.startswith("LoRA misfit: ") and said in caught.value.message
    assert numpy.array_equal(draw(model, request())[0], before)


def test_lora_whose_file_is_gone_is_named(model: Any) -> None:
    gone = LoraRef(name="sepia", sha256="0" * 64, weight=1.0)
    with pytest.raises(NotFound, match="LoRA sepia: its file is not on this machine") as caught:
        model.use_loras([gone])
    assert "/" not in caught.value.message


def test_lora_whose_file_was_exchanged_where_it_lies_is_named(model: Any, folder: Path) -> None:
    ref = put_known(folder, seed=91, name="sepia")
    another = put_known(folder, seed=92)
    place = folder / f"{ref.sha256}.safetensors"
    place.write_bytes((folder / f"{another.sha256}.safetensors").read_bytes())
    with pytest.raises(BadLoraFile, match="LoRA sepia: its file was changed"):
        model.use_loras([ref])


def test_lora_whose_file_is_damaged_is_named(model: Any, folder: Path) -> None:
    cut = (folder / f"{put_known(folder).sha256}.safetensors").read_bytes()[:-10]
    ref = LoraRef(name="sepia", sha256=hashlib.sha256(cut).hexdigest(), weight=1.0)
    (folder / f"{ref.sha256}.safetensors").write_bytes(cut)
    with pytest.raises(BadLoraFile, match="LoRA sepia: tensor .* ends after the end"):
        model.use_loras([ref])


@pytest.mark.parametrize("which", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_change_that_runs_out_of_memory_half_way_leaves_those_before(
    folder: Path, sets, which: int, kind: str, first, model: Any
) -> None:
    if kind == "lora":
        wanted = put_known(folder, seed=100 + which)
    else:
        wanted = put(folder, formats.lokr(seed=100 + which)[0], weight=2.0)
    refs = sets[which]
    before, plain = first(model, refs), first(model)
    model.use_loras(refs)
    with pytest.MonkeyPatch.context() as patch:
        run_out_half_way(patch, model)
        with pytest.raises(torch.OutOfMemoryError):
            model.use_loras([wanted])
    assert numpy.array_equal(draw(model, request(refs))[0], before)
    assert numpy.abs(picture(model, (wanted,)) - plain).max() > 5, "once there is room it works"


def run_out_half_way(patch: pytest.MonkeyPatch, model: Any) -> None:
    """Of the layers that a LoRA is put to, the first finds room and no other; LoKr comes in whole."""
    carrier = model._loras._carrier
    touched: list[Any] = []
    if isinstance(carrier, MergedLoras):
        set_extra = Fp4Linear.set_extra

        def set_first_extra(layer: Fp4Linear, up: torch.Tensor, down: torch.Tensor) -> None:
            touched.append(layer)
            if len(touched) == 2:
                raise torch.OutOfMemoryError
            set_extra(layer, up, down)

        patch.setattr(Fp4Linear, "set_extra", set_first_extra)
        return
    placed, load_native = carrier._placed, Native.load

    def place_first(path: str, weight: torch.Tensor) -> torch.Tensor:
        touched.append(path)
        if len(touched) > 2:
            raise torch.OutOfMemoryError
        return placed(path, weight)

    def load_and_fail(native: Native, transformer: Any, name: str) -> None:
        load_native(native, transformer, name)
        raise torch.OutOfMemoryError

    patch.setattr(carrier, "_placed", place_first)
    patch.setattr(Native, "load", load_and_fail)


# How BF16 carries them


def native_model(both: tuple[Any, Any]) -> Any:
    return both[0]


def wrapped(model: Any) -> list[Any]:
    return [part for part in model._image.transformer.modules() if isinstance(part, BaseTunerLayer)]


def test_native_adapters_are_pefts_each_by_itself_with_its_weight(both, style, other) -> None:
    model = native_model(both)
    model.use_loras([style, other])
    layers = wrapped(model)
    assert len(layers) == 60
    for layer in layers:
        assert layer.active_adapters == [style.sha256, other.sha256]
        assert layer.scaling[style.sha256] == pytest.approx(CLEAR * formats.SCALE)
        assert layer.scaling[other.sha256] == pytest.approx(-0.2 * formats.SCALE)
    model.use_loras([other, style])
    assert wrapped(model)[0].active_adapters == [other.sha256, style.sha256]


def test_native_lokr_alone_is_pefts_own_and_not_low_rank(both, lokr: LoraRef, style) -> None:
    model = native_model(both)
    model.use_loras([lokr])
    assert {type(layer).__module__ for layer in wrapped(model)} == {"peft.tuners.lokr.layer"}
    model.use_loras([lokr, style])
    assert {type(layer).__module__ for layer in wrapped(model)} == {"peft.tuners.lora.layer"}
    model.use_loras([])


def test_native_adapters_over_the_bound_leave_the_one_used_longest_ago_first(
    both, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = native_model(both)
    model._loras.release()
    refs = [put_known(folder, seed=200 + number) for number in range(4)]
    carrier = model._loras._carrier
    model.use_loras(refs[:1])
    monkeypatch.setattr(carrier, "_max_bytes", int(2.5 * carrier.size_bytes))
    first = pixels(model, request())
    for wanted in (1, 0, 2):
        model.use_loras([refs[wanted]])
    assert list(carrier._adapters) == [refs[0].sha256, refs[2].sha256]
    model.use_loras(refs)  # more than may be kept, all in use
    assert len(carrier._adapters) == 4
    model.use_loras(refs[:1])
    assert carrier.size_bytes <= carrier._max_bytes
    assert pixels(model, request()) == first


def test_native_layers_without_an_adapter_are_the_models_own(both, style: LoraRef, lokr) -> None:
    model = native_model(both)
    model.use_loras([style])
    model.use_loras([lokr])
    model._loras.release()
    assert wrapped(model) == []
    assert not hasattr(model._image.transformer, "peft_config")


# How FP4 carries them


def test_merged_lokr_of_too_high_a_rank_says_what_is_lost(
    both, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("models.lora.convert.lowrank.MAX_RANK", 6)
    monkeypatch.setattr("models.lora.convert.convert.__kwdefaults__", {"max_rank": 6})
    ref = put(folder, formats.lokr(seed=77)[0], name="rough")
    with caplog.at_level(logging.WARNING, logger="models.lora"):
        both[1].use_loras([ref])
    (record,) = [r for r in caplog.records if getattr(r, "action", "") == "lora_approximated"]
    assert "LoRA rough (lokr) is applied as low rank" in record.getMessage()


def test_merged_sets_are_kept_by_contents_and_weights(both, style, other) -> None:
    model = both[1]
    model.use_loras([style, other])
    kept = model._loras._carrier._sets
    before = len(kept)
    model.use_loras([other])
    model.use_loras([style, other])
    model.use_loras([reweighted(style, 0.123), other])
    assert len(kept) <= before + 2
    assert kept.get(((style.sha256, style.weight), (other.sha256, other.weight))) is not None


# Compiled


def test_compiled_model_changes_loras_without_compiling_again(
    folder: Path, sets, first, both
) -> None:
    model = applied.load("bf16", folder)
    some = [sets[0], sets[1], sets[2], sets[3]]
    wanted = {refs: first(both[0], refs) for refs in some}
    model.compile(autoencoder=True, backend="eager", fullgraph=True)
    draw(model, request())
    for refs in (sets[1], sets[2]):  # a width of branches, and one more: from then on, any
        model.use_loras(refs)
        draw(model, request(refs))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for refs in (*some, *some):
            assert numpy.abs(picture(model, refs) - wanted[refs]).max() <= 1
    assert numpy.array_equal(picture(model), wanted[()])
