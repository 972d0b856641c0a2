"""One run of jobs inside a worker: chunks, neighbours, memory, cancels, and one end for each."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.errors import BadPicture, FluxError, ModelUnavailable
from models.lora.errors import LoraIncompatible
from models.types import (
    Drawing,
    GenerationRequest,
    ImageFile,
    LoraApplied,
    LoraRef,
    OutOfMemory,
    PreviewOf,
    Stage,
)
from tests.utils.soak.bench import request
from utils.worker import events
from utils.worker.drawing import EXACT_BATCH_SIZE, JobInHand, Run

STEPS = 3
ENDS = (events.Finished, events.Failed, events.WasCancelled)


class Poisoned(RuntimeError):
    """The context is lost."""


class Died(BaseException):
    """Stands for the end of the process."""


class Stopped(BaseException):
    """Stands for the exit of a worker that was told to stop."""


class FakeModel:
    """Draws what the words of a prompt say; a picture is a text that follows from prompt and seed.

    raises: always · company: only with others · second: at every picture but the first
    late: after its last step · oom: unless frugal · huge: also then · odd: oom, then another error
    poison: the context is lost
    """

    engine = "fake"
    compute = "none"

    def __init__(self, batches_exactly: bool = True) -> None:
        self.batches_exactly = batches_exactly
        self.calls: list[tuple[list[str], bool]] = []  # (pictures, frugal)
        self.inputs: list[tuple[Any, Any]] = []  # (image, mask) of each drawing
        self.lora_error: Exception | None = None
        self.loras: list[Sequence[LoraRef]] = []  # of each call

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        self.loras.append(loras)
        if self.lora_error is not None:
            raise self.lora_error
        return tuple(
            LoraApplied(
                name=lora.name,
                sha256=lora.sha256,
                weight=lora.weight,
                matched_keys=3,
                unmatched_keys=1,
            )
            for lora in loras
        )

    def generate(
        self,
        drawings: Sequence[Drawing],
        *,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int, PreviewOf], None],
        frugal: bool = False,
    ) -> tuple[list[Any], dict[str, float]]:
        pictures = [picture(drawing) for drawing in drawings]
        self.calls.append((pictures, frugal))
        self.inputs += [(drawing.image, drawing.mask) for drawing in drawings]
        on_stage(Stage.ENCODING)
        on_stage(Stage.DENOISING)
        for step in range(STEPS):
            if step == 1:
                for drawing in drawings:
                    self._fault(drawing, len(drawings), frugal)
            on_step(step + 1, STEPS, lambda index: pictures[index].encode())
        on_stage(Stage.DECODING)
        if any("late" in drawing.request.prompt for drawing in drawings):
            raise RuntimeError("late")
        return pictures, {"encode": 1.0, "denoise": 6.0, "decode": 2.0}

    def _fault(self, drawing: Drawing, company: int, frugal: bool) -> None:
        words = drawing.request.prompt.split()
        if "raises" in words or ("company" in words and company > 1):
            raise RuntimeError("the words of a library")
        if "second" in words and drawing.seed > drawing.request.seed:
            raise RuntimeError("the words of a library")
        if "poison" in words:
            raise Poisoned
        if "odd" in words and frugal:
            raise RuntimeError("the words of a library")
        if "huge" in words or (not frugal and ("oom" in words or "odd" in words)):
            raise OutOfMemory

    def unload(self) -> None:
        raise AssertionError("a run unloads nothing")


def picture(drawing: Drawing) -> str:
    return f"{drawing.request.prompt}/{drawing.seed}"


class FakeWorkshop:
    """Implements `drawing.Workshop`: all in one thread; saving waits until the end when `is_lazy`.

    `cancels` maps how often the run has looked around to the ids that are cancelled by then.
    """

    def __init__(
        self,
        model: FakeModel,
        *,
        max_batch_size: int = 0,
        cancels: dict[int, list[str]] | None = None,
        is_lazy: bool = False,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.previews_wanted = False
        self.sent: list[Any] = []
        self.memory_given_back = 0
        self.load_error: Exception | None = None
        self.stops_after: int | None = None
        self.saved: dict[str, dict[int, str]] = {}
        self.cancelled: set[str] = set()
        self._model = model
        self._cancels = cancels or {}
        self._is_lazy = is_lazy
        self.looks = 0
        self.looks_while_loading = False
        self.preview_seconds = 0.0
        self._outbox: list[Callable[[], None]] = []

    def model_for(
        self, model_id: str, on_loading: Callable[[], None], look_around: Callable[[], None]
    ) -> tuple[Any, float]:
        on_loading()
        if self.looks_while_loading:
            look_around()
        if self.load_error is not None:
            raise self.load_error
        return self._model, 7.0

    def open_inputs(self, request: GenerationRequest) -> tuple[Any, Any, tuple[Any, ...]]:
        if "damaged" in request.inputs:
            raise BadPicture.of("image", "the picture cannot be decoded")
        references = tuple(f"opened {each}" for each in request.reference_images)
        return (
            request.image and f"opened {request.image}",
            request.mask and f"opened {request.mask}",
            references,
        )

    def seen(self, job_id: str, preview: bytes) -> bytes:
        return preview

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self.cancelled

    def leave_if_stopping(self) -> None:
        self.looks += 1
        self.cancelled.update(self._cancels.get(self.looks, ()))
        if self.looks == self.stops_after:
            raise Stopped

    def give_back_memory(self) -> None:
        self.memory_given_back += 1

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, OutOfMemory)

    def is_poisonous(self, error: Exception) -> bool:
        return isinstance(error, Poisoned)

    def die_poisoned(self, job_ids: Sequence[str]) -> None:
        raise Died(*job_ids)

    def send(self, event: Any) -> None:
        self.sent.append(event)

    def report(self, call: Callable[[], None]) -> None:
        call()

    def end(self, event: Any) -> None:
        self._later(lambda: self.send(event))

    def save(self, job: JobInHand, index: int, image: Any, engine: str) -> None:
        self._later(lambda: self._save(job, index, image))

    def flush(self) -> None:
        for call in self._outbox:
            call()
        self._outbox = []

    def _later(self, call: Callable[[], None]) -> None:
        self._outbox.append(call)
        if not self._is_lazy:
            self.flush()

    def _save(self, job: JobInHand, index: int, image: str) -> None:
        if job.is_over:
            return
        self.saved.setdefault(job.id, {})[index] = image
        job.files[index] = ImageFile(filename=image, seed=0, width=1, height=1, size_bytes=1)
        if len(job.files) == job.request.num_images:
            job.is_over = True
            self.send(events.Finished(job_id=job.id, model=job.request.model, result={}))

    # What was said

    def ends(self) -> dict[str, Any]:
        """The end of each job; that there is one only is checked here."""
        found: dict[str, Any] = {}
        for event in self.sent:
            if isinstance(event, ENDS):
                assert event.job_id not in found, f"two ends of {event.job_id}: {self.sent}"
                found[event.job_id] = event
        return found

    def words(self) -> dict[str, str]:
        """Each job's end in a word: finished, cancelled, or the code of its failure."""
        return {
            job_id: (
                end.code
                if isinstance(end, events.Failed)
                else "finished" if isinstance(end, events.Finished) else "cancelled"
            )
            for job_id, end in self.ends().items()
        }

    def progress(self, job_id: str, *stages: Stage) -> list[events.Progress]:
        said = [e for e in self.sent if isinstance(e, events.Progress) and e.job_id == job_id]
        return [event for event in said if not stages or event.stage in stages]

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.sent)


def job(job_id: str, prompt: str = "", num_images: int = 1, **fields: Any) -> JobInHand:
    asked: GenerationRequest = request(
        prompt=f"{job_id} {prompt}",
        num_inference_steps=STEPS,
        num_images=num_images,
        seed=10,
        **fields,
    )
    return JobInHand(id=job_id, request=asked)


def run(*jobs: JobInHand, model: FakeModel | None = None, **options: Any) -> FakeWorkshop:
    """Draw them; returns the workshop, with everything that was said."""
    workshop = FakeWorkshop(model or FakeModel(), **options)
    return run_in(workshop, *jobs)


def run_in(workshop: FakeWorkshop, *jobs: JobInHand) -> FakeWorkshop:
    Run(jobs, workshop).run()
    workshop.flush()
    return workshop


def alone(one: JobInHand) -> dict[int, str]:
    """The pictures that a job has when it is drawn alone."""
    return {
        index: picture(Drawing(request=one.request, seed=one.request.seed + index))
        for index in range(one.request.num_images)
    }


# Chunks


def test_run_of_several_jobs_draws_them_together() -> None:
    model = FakeModel()
    jobs = [job("a"), job("b"), job("c")]
    workshop = run(*jobs, model=model)
    assert [len(pictures) for pictures, _ in model.calls] == [3]
    assert workshop.words() == dict.fromkeys("abc", "finished")
    assert workshop.saved == {one.id: alone(one) for one in jobs}


@pytest.mark.parametrize(
    ("size", "is_exact", "chunks"),
    [
        (0, True, [EXACT_BATCH_SIZE, 1]),
        (0, False, [1] * 5),
        (2, False, [2, 2, 1]),
        (1, True, [1] * 5),
    ],
)
def test_run_chunk_has_as_many_pictures_as_may_be(
    size: int, is_exact: bool, chunks: list[int]
) -> None:
    model = FakeModel(batches_exactly=is_exact)
    run(job("a", num_images=5), model=model, max_batch_size=size)
    assert [len(pictures) for pictures, _ in model.calls] == chunks


def test_run_pictures_of_one_job_have_seeds_that_follow() -> None:
    workshop = run(job("a", num_images=3), max_batch_size=2)
    assert [text.partition("/")[2] for text in workshop.saved["a"].values()] == ["10", "11", "12"]


def test_run_chunk_is_told_as_drawn_with_its_pictures() -> None:
    workshop = run(job("a", num_images=3), max_batch_size=2)
    drawn = [event.pictures for event in workshop.sent if isinstance(event, events.Drawn)]
    assert drawn == [2, 1]


def test_run_batch_shares_its_time_among_its_pictures() -> None:
    jobs = [job("a"), job("b", num_images=2)]
    run(*jobs, max_batch_size=3)
    assert jobs[0].timings["denoise"] == pytest.approx(2.0)
    assert jobs[1].timings["denoise"] == pytest.approx(4.0)
    assert jobs[0].timings["load"] == 7.0


# Pictures to begin with


def test_run_gives_the_model_each_jobs_own_pictures() -> None:
    model = FakeModel()
    jobs = [job("a", image="x", mask="m", strength=1.0), job("b", num_images=2)]
    run(*jobs, model=model)
    assert model.inputs == [("opened x", "opened m"), (None, None), (None, None)]


def test_run_gives_the_model_each_jobs_own_references() -> None:
    seen: list[tuple[str, ...]] = []

    class Looks(FakeModel):
        def generate(self, drawings: Any, **how: Any) -> Any:
            seen.extend(drawing.references for drawing in drawings)
            return super().generate(drawings, **how)

    run(job("a", reference_images=("x", "y")), job("b"), model=Looks())
    assert seen == [("opened x", "opened y"), ()]


def test_run_damaged_reference_is_the_end_of_its_job() -> None:
    workshop = run(job("a", reference_images=("x", "damaged")), job("b"))
    assert workshop.words() == {"a": "bad_file", "b": "finished"}


def test_run_damaged_picture_is_the_end_of_its_own_job_alone() -> None:
    jobs = [job(name, image=image, strength=1.0) for name, image in [("a", "damaged"), ("b", "x")]]
    workshop = run(*jobs)
    assert workshop.words() == {"a": "bad_file", "b": "finished"}
    assert workshop.ends()["a"].message == "image: the picture cannot be decoded"


def test_job_steps_are_those_that_its_strength_leaves() -> None:
    assert job("a", num_images=2, image="x", strength=0.5).steps == 2 * 2


# Progress


@pytest.mark.parametrize("size", [1, 2, 3])
def test_run_steps_are_counted_over_all_images(size: int) -> None:
    workshop = run(job("a", num_images=3), max_batch_size=size)
    said = workshop.progress("a", Stage.DENOISING)
    steps = [event.step for event in said]
    assert steps == sorted(steps) and steps[-1] == 3 * STEPS
    assert {event.steps for event in said} == {3 * STEPS}


def test_run_jobs_of_a_batch_each_have_their_own_steps() -> None:
    workshop = run(job("a"), job("b", num_images=2), max_batch_size=3)
    steps = {one: [e.step for e in workshop.progress(one, Stage.DENOISING)] for one in "ab"}
    assert steps == {"a": [0, 1, 2, 3], "b": [0, 2, 4, 6]}


def test_run_stages_come_in_their_order() -> None:
    workshop = run(job("a"))
    stages = [event.stage for event in workshop.progress("a")]
    assert list(dict.fromkeys(stages)) == [
        Stage.LOADING,
        Stage.ENCODING,
        Stage.DENOISING,
        Stage.DECODING,
    ]


def test_run_jobs_are_told_to_load_before_the_model_is() -> None:
    """Also where the thread that reports comes late."""

    class Late(FakeWorkshop):
        told: list[events.Progress] | None = None

        def report(self, call: Callable[[], None]) -> None:
            self._outbox.append(call)

        def model_for(
            self, model_id: str, on_loading: Callable[[], None], look_around: Callable[[], None]
        ) -> tuple[Any, float]:
            found = super().model_for(model_id, on_loading, look_around)
            self.told = list(self.sent)
            return found

    workshop = Late(FakeModel())
    run_in(workshop, job("a"), job("b"))
    assert [(each.job_id, each.stage) for each in workshop.told or []] == [
        ("a", Stage.LOADING),
        ("b", Stage.LOADING),
    ]


def test_run_stage_that_is_told_again_looks_around_and_is_announced_once() -> None:
    class Polling(FakeModel):
        def generate(self, drawings, *, on_stage, on_step, frugal=False):
            for _ in range(3):
                on_stage(Stage.DECODING)
            return [picture(drawing) for drawing in drawings], {}

    workshop = FakeWorkshop(Polling())
    run_in(workshop, job("a"))
    assert len(workshop.progress("a", Stage.DECODING)) == 1
    assert workshop.looks >= 3


def test_run_step_without_a_preview_is_reported_without() -> None:
    class Blind(FakeModel):
        def generate(self, drawings, *, on_stage, on_step, frugal=False):
            return super().generate(
                drawings,
                on_stage=on_stage,
                on_step=lambda step, steps, _: on_step(step, steps, None),
            )

    workshop = FakeWorkshop(Blind())
    workshop.previews_wanted = True
    run_in(workshop, job("a"))
    assert [event.preview for event in workshop.progress("a", Stage.DENOISING)] == [None] * 4


def test_run_that_is_tried_again_counts_its_steps_from_where_it_was() -> None:
    workshop = run(job("a", "oom"))
    assert workshop.progress("a")[-1].step == STEPS
    assert max(event.step for event in workshop.progress("a")) == STEPS


def test_run_previews_are_made_when_somebody_looks() -> None:
    workshop = FakeWorkshop(FakeModel())
    workshop.previews_wanted = True
    run_in(workshop, job("a"))
    shown = [event.preview for event in workshop.progress("a") if event.preview]
    assert shown and base64.b64decode(shown[0]).decode() == "a /10"


def test_run_preview_shows_the_last_picture_of_each_job() -> None:
    workshop = FakeWorkshop(FakeModel(), max_batch_size=3)
    workshop.previews_wanted = True
    run_in(workshop, job("a", num_images=2), job("b"))
    shown = [
        base64.b64decode(event.preview).decode()
        for event in workshop.sent
        if isinstance(event, events.Progress) and event.preview
    ]
    assert shown[:2] == ["a /11", "b /10"]


def test_run_previews_are_not_made_when_nobody_looks() -> None:
    assert not [event for event in run(job("a")).progress("a") if event.preview]


# Handing over


def places(workshop: FakeWorkshop, kind: type) -> list[int]:
    return [place for place, event in enumerate(workshop.sent) if isinstance(event, kind)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_run_hands_over_once_when_the_last_chunk_decodes(size: int) -> None:
    workshop = run(job("a", num_images=2), job("b", num_images=2), max_batch_size=size)
    (handover,) = places(workshop, events.Handover)
    steps = [
        place
        for place, event in enumerate(workshop.sent)
        if isinstance(event, events.Progress) and event.stage is Stage.DENOISING
    ]
    assert max(steps) < handover < places(workshop, events.Drawn)[-1]


@pytest.mark.parametrize("prompt", ["late", "late oom"])
def test_run_that_fails_while_it_decodes_hands_over_once(prompt: str) -> None:
    """What is given after a handover waits behind this run: a second one would fetch too much."""
    workshop = run(job("a"), job("b", prompt), job("c"))
    assert workshop.count(events.Handover) <= 1
    assert workshop.words()["b"] == "internal"


def test_run_without_a_chunk_left_hands_nothing_over() -> None:
    workshop = run(job("a"), cancels={1: ["a"]})
    assert workshop.count(events.Handover) == 0
    assert workshop.words() == {"a": "cancelled"}


# One that goes wrong


def test_run_error_in_a_batch_fails_only_the_job_at_fault() -> None:
    model = FakeModel()
    jobs = [job("a"), job("b", "raises"), job("c")]
    workshop = run(*jobs, model=model)
    assert workshop.words() == {"a": "finished", "b": "internal", "c": "finished"}
    assert [len(pictures) for pictures, _ in model.calls] == [3, 1, 1, 1]
    assert workshop.saved == {one.id: alone(one) for one in (jobs[0], jobs[2])}


def test_run_error_that_company_makes_fails_nobody() -> None:
    workshop = run(job("a", "company"), job("b"))
    assert workshop.words() == {"a": "finished", "b": "finished"}


def test_run_error_of_a_second_picture_ends_the_job_once() -> None:
    model = FakeModel()
    workshop = run(job("a", "second", num_images=4), job("b"), model=model, max_batch_size=2)
    assert workshop.words() == {"a": "internal", "b": "finished"}
    drawn = [text for pictures, _ in model.calls for text in pictures]
    assert "a second/13" not in drawn  # nobody draws for a job that is over


def test_run_error_is_told_without_the_words_of_a_library() -> None:
    end = run(job("a", "raises")).ends()["a"]
    assert "RuntimeError" in end.message and "library" not in end.message


def test_run_poisoned_context_ends_the_process_before_anybody_is_told() -> None:
    workshop = FakeWorkshop(FakeModel(), max_batch_size=2)
    with pytest.raises(Died, match="a"):
        run_in(workshop, job("a", "poison"), job("b"))
    assert workshop.ends() == {}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ModelUnavailable("not here"), "model_unavailable"), (RuntimeError("secret"), "internal")],
)
def test_run_model_that_cannot_be_loaded_fails_every_job(error: Exception, code: str) -> None:
    workshop = FakeWorkshop(FakeModel())
    workshop.load_error = error
    run_in(workshop, job("a"), job("b"))
    assert workshop.words() == {"a": code, "b": code}
    told = workshop.ends()["a"].message
    assert (told == "not here") if isinstance(error, FluxError) else ("secret" not in told)


def test_run_model_that_poisons_while_loading_ends_the_process() -> None:
    workshop = FakeWorkshop(FakeModel())
    workshop.load_error = Poisoned()
    with pytest.raises(Died):
        run_in(workshop, job("a"))
    assert workshop.ends() == {}


def with_loras(one: JobInHand, *names: str) -> JobInHand:
    refs = tuple(LoraRef(name=name, sha256=name[0] * 64, weight=0.5) for name in names)
    one.request = replace(one.request, loras=refs)
    return one


def test_run_asks_for_the_jobs_loras_once_before_it_draws() -> None:
    model = FakeModel()
    plain, styled = job("a", "x", 5), with_loras(job("b", "x", 5), "sepia", "ink")
    run(plain, model=model)
    run(styled, model=model)
    assert model.loras == [(), styled.request.loras]
    assert len(model.calls) == 4, "in chunks; none asked again"
    assert (plain.loras, plain.timings["lora"] > 0) == ((), True)


def test_run_tells_each_job_how_its_loras_matched_by_its_own_names() -> None:
    one, other = with_loras(job("a"), "sepia", "ink"), with_loras(job("b"), "sunset", "iris")
    run(one, other)
    assert [lora.name for lora in one.loras] == ["sepia", "ink"]
    assert [lora.name for lora in other.loras] == ["sunset", "iris"]
    assert {(lora.matched_keys, lora.unmatched_keys) for lora in other.loras} == {(3, 1)}


def test_run_lora_that_does_not_fit_fails_every_job_with_its_code_and_the_next_works() -> None:
    model = FakeModel()
    model.lora_error = LoraIncompatible("LoRA sepia: the LoRA is for FLUX.2")
    workshop = run(with_loras(job("a"), "sepia"), with_loras(job("b"), "sepia"), model=model)
    assert model.calls == [], "before the device is touched"
    assert {end.code for end in workshop.ends().values()} == {"lora_incompatible"}
    assert workshop.ends()["b"].message == "LoRA sepia: the LoRA is for FLUX.2"
    model.lora_error = None
    assert isinstance(run(job("c"), model=model).ends()["c"], events.Finished)


def test_run_loras_that_have_no_room_fail_as_oom_and_memory_is_given_back() -> None:
    model = FakeModel()
    model.lora_error = OutOfMemory()
    workshop = run(with_loras(job("a"), "sepia"), model=model)
    assert workshop.ends()["a"].code == "oom"
    assert workshop.memory_given_back == 1


def test_run_told_to_stop_leaves_at_the_next_step_without_an_end() -> None:
    workshop = FakeWorkshop(FakeModel())
    workshop.stops_after = 4
    with pytest.raises(Stopped):
        run_in(workshop, job("a"))
    assert workshop.ends() == {}


# Memory


def test_run_out_of_memory_is_tried_once_more_frugally() -> None:
    model = FakeModel()
    workshop = run(job("a", "oom"), model=model)
    assert [frugal for _, frugal in model.calls] == [False, True]
    assert workshop.words() == {"a": "finished"} and workshop.memory_given_back == 1


def test_run_out_of_memory_also_frugally_fails_as_oom() -> None:
    model = FakeModel()
    workshop = run(job("a", "huge"), model=model)
    assert [frugal for _, frugal in model.calls] == [False, True]
    assert workshop.words() == {"a": "oom"} and workshop.memory_given_back == 2
    assert "128x128" in workshop.ends()["a"].message


def test_run_that_fails_otherwise_when_frugal_is_no_oom() -> None:
    assert run(job("a", "odd")).words() == {"a": "internal"}


def test_run_after_out_of_memory_the_next_works() -> None:
    model = FakeModel()
    workshop = FakeWorkshop(model, max_batch_size=1)
    run_in(workshop, job("a", "huge"), job("b"))
    run_in(workshop, job("c"))
    assert workshop.words() == {"a": "oom", "b": "finished", "c": "finished"}
    assert model.calls[-1] == (["c /10"], False)


def test_run_out_of_memory_in_a_batch_is_tried_one_by_one() -> None:
    model = FakeModel()
    jobs = [job("a"), job("b", "oom"), job("c", "huge")]
    workshop = run(*jobs, model=model)
    assert workshop.words() == {"a": "finished", "b": "finished", "c": "oom"}
    assert [(len(pictures), frugal) for pictures, frugal in model.calls] == [
        (3, False),
        (1, False),
        (1, False),
        (1, True),
        (1, False),
        (1, True),
    ]


# Cancelled


def test_run_cancelled_before_it_began_draws_nothing() -> None:
    model = FakeModel()
    workshop = FakeWorkshop(model)
    workshop.cancelled = {"a", "b"}
    run_in(workshop, job("a"), job("b"))
    assert workshop.words() == {"a": "cancelled", "b": "cancelled"} and model.calls == []


@pytest.mark.parametrize("look", range(1, 7))
def test_run_one_cancelled_in_a_batch_leaves_the_others_as_alone(look: int) -> None:
    jobs = [job("a"), job("b"), job("c")]
    workshop = run(*jobs, cancels={look: ["b"]})
    assert workshop.words() == {"a": "finished", "b": "cancelled", "c": "finished"}
    assert workshop.saved == {one.id: alone(one) for one in (jobs[0], jobs[2])}
    end = next(i for i, e in enumerate(workshop.sent) if isinstance(e, events.WasCancelled))
    assert not [
        event
        for event in workshop.sent[end:]
        if isinstance(event, events.Progress) and event.job_id == "b"
    ]


def test_run_cancelled_while_its_model_loads_ends_the_loading() -> None:
    model = FakeModel()
    workshop = FakeWorkshop(model, cancels={1: ["a"]})
    workshop.looks_while_loading = True
    run_in(workshop, job("a"))
    assert workshop.words() == {"a": "cancelled"} and model.calls == []


def test_run_cancelled_leaves_at_the_next_step() -> None:
    workshop = run(job("a", num_images=3), cancels={3: ["a"]}, max_batch_size=1)
    assert [event.step for event in workshop.progress("a", Stage.DENOISING)] == [0]
    assert workshop.words() == {"a": "cancelled"}


def test_run_cancelled_between_its_chunks_is_not_drawn_further() -> None:
    model = FakeModel()
    workshop = run(
        job("a", num_images=2), job("b"), model=model, cancels={6: ["a"]}, max_batch_size=1
    )
    assert workshop.words() == {"a": "cancelled", "b": "finished"}
    assert [pictures for pictures, _ in model.calls] == [["a /10"], ["b /10"]]


# Any script of faults

WORDS = ("", "", "raises", "company", "second", "late", "oom", "huge", "odd")
JOBS = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(1, 3)), min_size=1, max_size=4)
CANCELS = st.dictionaries(
    st.integers(1, 25), st.lists(st.sampled_from("0123"), max_size=2), max_size=3
)


def end_of(word: str, num_images: int) -> str:
    """How a job with this word ends when nobody cancels it."""
    if word == "second":
        return "finished" if num_images == 1 else "internal"
    return {"raises": "internal", "late": "internal", "odd": "internal", "huge": "oom"}.get(
        word, "finished"
    )


@settings(max_examples=300, deadline=None)
@given(JOBS, CANCELS, st.integers(0, 4), st.booleans(), st.booleans())
def test_run_after_any_faults_has_ended_each_job_once(
    script: list[tuple[str, int]],
    cancels: dict[int, list[str]],
    size: int,
    is_exact: bool,
    is_lazy: bool,
) -> None:
    jobs = [job(f"{i}", word, number) for i, (word, number) in enumerate(script)]
    workshop = run(
        *jobs,
        model=FakeModel(is_exact),
        max_batch_size=size,
        cancels=cancels,
        is_lazy=is_lazy,
    )
    words = workshop.words()
    assert list(sorted(words)) == [one.id for one in jobs]
    for one, (word, number) in zip(jobs, script, strict=True):
        is_cancelled = one.id in workshop.cancelled
        assert words[one.id] == end_of(word, number) or (
            is_cancelled and words[one.id] == "cancelled"
        )
        if words[one.id] == "finished":
            assert workshop.saved[one.id] == alone(one)
    assert workshop.count(events.Handover) <= 1
    if not workshop.cancelled and not any(word for word, _ in script):
        assert workshop.count(events.Handover) == 1
