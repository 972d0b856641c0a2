"""What is kept of ComfyUI's prompts is bounded, and each key's own."""

from __future__ import annotations

from api.auth import EVERYBODY, Access
from api.dialects.comfy_read import Found
from api.dialects.comfy_runs import MAX_KEPT_BYTES, MAX_RUNS, MAX_UPLOADS, Run, Runs
from models.types import GenerationRequest, OutputFormat
from utils.job import Job, JobStatus

REQUEST = GenerationRequest(
    prompt="x",
    negative_prompt=None,
    model="embedded",
    backend="flux",
    width=128,
    height=128,
    num_inference_steps=1,
    guidance_scale=0.0,
    true_cfg_scale=1.0,
    seed=1,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=(),
)


def run(number: int, owner: str = "", size_bytes: int = 100) -> Run:
    job = Job(
        seq=number,
        id=f"job{number}",
        status=JobStatus.QUEUED,
        request=REQUEST,
        created_at="2026-01-01T00:00:00.000Z",
        owner=owner,
    )
    return Run(
        prompt_id=f"prompt{number}",
        job=job,
        client_id="",
        prompt={},
        extra_data={},
        found=Found(),
        size_bytes=size_bytes,
    )


def test_oldest_prompts_are_forgotten_over_the_number() -> None:
    runs = Runs()
    for number in range(MAX_RUNS + 5):
        runs.add(run(number))
    assert not runs.has("prompt4") and runs.has("prompt5")
    assert runs.of_job("job4") is None and runs.of_job("job5") is not None


def test_oldest_prompts_are_forgotten_over_the_bytes() -> None:
    runs = Runs()
    for number in range(5):
        runs.add(run(number, size_bytes=MAX_KEPT_BYTES // 2))
    assert [runs.has(f"prompt{number}") for number in range(5)] == [False] * 3 + [True] * 2


def test_prompt_that_was_forgotten_leaves_room() -> None:
    runs = Runs()
    for number in range(2):
        runs.add(run(number, size_bytes=MAX_KEPT_BYTES // 2))
    found = runs.find(EVERYBODY, "prompt0")
    assert found is not None
    runs.forget(found)
    runs.add(run(3, size_bytes=MAX_KEPT_BYTES // 2))
    assert runs.has("prompt1") and runs.has("prompt3")


def test_prompts_are_their_keys_own() -> None:
    runs = Runs()
    runs.add(run(1, owner="a"))
    runs.add(run(2, owner="b"))
    assert [each.prompt_id for each in runs.own("a")] == ["prompt1"]
    assert [each.prompt_id for each in runs.seen(Access("b", False))] == ["prompt2"]
    assert runs.find(Access("b", False), "prompt1") is None
    assert len(list(runs.seen(EVERYBODY))) == 2


def test_uploads_are_their_keys_own_and_bounded() -> None:
    runs = Runs()
    runs.note_upload("a", "x.png", "1" * 64)
    assert runs.upload("b", "x.png") is None
    assert runs.upload("a", "x.png") == "1" * 64
    for number in range(MAX_UPLOADS):
        runs.note_upload("b", f"{number}.png", "2" * 64)
    assert runs.upload("a", "x.png") is None
    assert len(runs.uploads("b")) == MAX_UPLOADS
