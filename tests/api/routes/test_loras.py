"""The LoRA library over HTTP, and the LoRAs of a request up to the queue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from config.catalog import load_catalog
from tests.lora_files import FLUX1, FLUX2, SD15, SDXL, lora
from tests.service import ENGINE_MAIN, RunningService
from utils.metadata import read_png_texts

FILE = {"Content-Type": "application/octet-stream"}
DORA = ("lora_down.weight", "dora_scale")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service on the scripted model whose queue is paused: what is submitted stays to be looked at."""
    folder = tmp_path_factory.mktemp("loras")
    service = RunningService(folder, main=ENGINE_MAIN, TEST_ENGINE="scripted").start()
    try:
        service.wait_for_workers()
        service.client.post("/queue/pause")
        yield service
    finally:
        service.close()


@pytest.fixture
def library(running: RunningService) -> Iterator[RunningService]:
    """The same, with no LoRA, no default and no job before and after each test."""
    yield running
    running.client.post("/queue/clear")
    running.client.post("/remove-lora")
    for each in running.client.get("/loras").json()["loras"]:
        if not each["builtin"]:
            running.client.delete(f"/loras/{each['name']}")


@pytest.fixture
def unpinned(library: RunningService) -> RunningService:
    """The same, and what jobs of earlier tests kept has been swept, which is done some time after their end."""
    library.wait_until(lambda: pins(library) == set(), what="keeps the LoRA of an ended job")
    return library


def put(
    service: RunningService, data: bytes = lora(), filename: str = "Woodcut.safetensors"
) -> dict[str, Any]:
    answer = service.client.put(f"/loras/{filename}", content=data, headers=FILE)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def own(service: RunningService) -> list[dict[str, Any]]:
    """What is in the library beside what ships with the project."""
    return [e for e in service.client.get("/loras").json()["loras"] if not e["builtin"]]


def names(service: RunningService) -> list[str]:
    return [each["name"] for each in own(service)]


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["code"] == code
    return told


def fields(told: dict[str, Any]) -> list[str]:
    return [each["field"] for each in told.get("errors", ())]


def submit(service: RunningService, **body: Any) -> httpx2.Response:
    return service.client.post("/jobs", json={"prompt": "a", **body})


NONE_APPLIED: dict[str, Any] = {"applied": False, "loras": []}


def defaults(answer: httpx2.Response) -> dict[str, Any]:
    """What an answer says of the default LoRAs, without the older words for it."""
    return {name: answer.json()[name] for name in NONE_APPLIED}


def loras_of(service: RunningService, answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 202, answer.text
    return service.job(answer.json()["id"])["request"]["loras"]


def waiting(service: RunningService) -> int:
    return service.client.get("/queue").json()["queued"]


# Uploads


def test_put_answers_what_the_file_is(library: RunningService) -> None:
    data = lora(metadata={"modelspec.trigger_phrase": "w00d"})
    answer = library.client.put("/loras/Woodcut.safetensors", content=data)
    told, sha256 = answer.json(), hashlib.sha256(data).hexdigest()
    assert answer.status_code == 201
    assert {name: told[name] for name in told if name not in ("created_at", "targets")} == {
        "name": "woodcut", "filename": "Woodcut.safetensors", "sha256": sha256,
        "stored_filename": f"{sha256}.safetensors", "size_bytes": len(data), "status": "ready",
        "format": "kohya", "base_model": "FLUX.1", "family": "flux1", "hidden_size": 192,
        "rank": 1, "ranks": [1], "alpha": None, "alphas": [], "text_encoders": [], "modules": 1,
        "tensors": 2, "unknown_keys": [], "trigger_words": ["w00d"],
        "compatible_models": ["embedded"], "refusal": None, "builtin": False, "source": "upload",
        "hub_ids": [],
    }  # fmt: skip
    assert told["targets"] == ["single blocks"]
    assert library.client.get("/loras/woodcut").json() == told
    assert own(library) == [told]


def test_put_same_content_again_is_the_same_entry(library: RunningService) -> None:
    first = put(library)
    answer = library.client.put("/loras/other.safetensors", content=lora())
    assert (answer.status_code, answer.json()) == (200, first)
    assert names(library) == ["woodcut"]


@pytest.mark.parametrize("path", ["/loras", "/upload-lora"])
def test_post_form_is_the_same(library: RunningService, path: str) -> None:
    form = {"file": ("Woodcut.safetensors", lora(), "application/octet-stream")}
    first = library.client.post(path, files=form)
    again = library.client.post(path, files=form)
    assert (first.status_code, again.status_code) == (201, 200)
    entry = library.client.get("/loras/woodcut").json()
    assert first.json() == again.json() == {**first.json(), **entry}


def test_post_form_with_several_files_answers_all(library: RunningService) -> None:
    form = [("file", (f"{n}.safetensors", lora(n))) for n in range(3)]
    answer = library.client.post("/loras", files=form)
    assert [each["name"] for each in answer.json()["loras"]] == ["0", "1", "2"]


def test_post_form_with_one_bad_file_keeps_none(library: RunningService) -> None:
    form = [("file", ("a.safetensors", lora())), ("file", ("b.safetensors", lora(float("nan"))))]
    told = problem(library.client.post("/loras", files=form), 422, "bad_file")
    assert told["detail"].startswith("b.safetensors: ")
    assert names(library) == []


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"files": {"image": ("a.safetensors", b"x")}}, "image"),
        ({"data": {"file": "text"}, "files": {"x": ("", b"")}}, "file"),
        ({"files": [("file", (f"{n}.safetensors", lora(n))) for n in range(9)]}, "file"),
    ],
    ids=["another field", "text in place of a file", "nine files"],
)
def test_post_form_that_is_none_of_ours_is_refused(
    library: RunningService, form: dict[str, Any], field: str
) -> None:
    told = problem(library.client.post("/loras", **form), 400, "invalid_request")
    assert fields(told) == [field]
    assert names(library) == []


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"", 415),
        ("multipart/form-data; boundary=" + "x" * 300, b"", 400),
        ("multipart/form-data; boundary=x", b"", 400),
        ("multipart/form-data; boundary=x", b"nonsense", 400),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.safetensors"\r\n\r\n'
            + lora(),
            400,
        ),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\n", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 10_000 + b"\r\n\r\n", 400),
    ],
)
def test_post_broken_form_is_refused_and_leaves_nothing(
    library: RunningService, content_type: str, body: bytes, status: int
) -> None:
    answer = library.client.post("/loras", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status, answer.text
    assert names(library) == [] and not list(library.lora_dir.rglob("*.part"))


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt", "zip", "safetensors.pt"])
def test_put_of_another_suffix_is_415(library: RunningService, suffix: str) -> None:
    answer = library.client.put(f"/loras/a.{suffix}", content=lora())
    assert "safetensors" in problem(answer, 415, "bad_file")["detail"]


# The library


def test_file_that_nothing_can_apply_is_listed_with_the_reason(library: RunningService) -> None:
    told = put(library, lora(modules=SD15), "sd15.safetensors")
    assert told["compatible_models"] == [] and "Stable Diffusion 1.5" in told["refusal"]


def test_lora_of_sdxl_fits_sdxl_alone(library: RunningService) -> None:
    told = put(library, lora(modules=SDXL), "sdxl.safetensors")
    assert told["compatible_models"] == ["sdxl-base"] and told["refusal"] is None


def test_lora_of_the_large_model_fits_the_large_models(library: RunningService) -> None:
    told = put(library, lora(modules=FLUX1))
    fits = [
        row.id
        for row in load_catalog()
        if row.loras
        and (row.architecture or row.family) == "flux1"
        and row.hidden_size == 3072
        and "bf16" in row.memory_gib
    ]
    assert told["compatible_models"] == fits and {"flux-schnell", "flux-dev"} <= set(fits)


def test_get_unknown_is_404_with_names_that_are_near(library: RunningService) -> None:
    put(library)
    told = problem(library.client.get("/loras/woodcat"), 404, "not_found")
    assert "did you mean woodcut" in told["detail"]


def test_copied_file_is_there_at_the_next_listing(library: RunningService) -> None:
    library.lora_dir.mkdir(exist_ok=True)
    (library.lora_dir / "By Hand.safetensors").write_bytes(lora())
    assert names(library) == ["by-hand"]


def test_patch_renames_and_gives_trigger_words(library: RunningService) -> None:
    put(library)
    answer = library.client.patch("/loras/woodcut", json={"name": "ink", "trigger_words": ["1nk"]})
    assert (answer.json()["name"], answer.json()["trigger_words"]) == ("ink", ["1nk"])
    assert library.client.get("/loras/ink").json() == answer.json()
    assert library.client.get("/loras/woodcut").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"), ({"name": None}, "body"), ({"nmae": "a"}, "nmae"), ([], "body"),
        ({"name": ""}, "name"), ({"name": "Ink"}, "name"), ({"name": "../x"}, "name"),
        ({"name": "a" * 65}, "name"), ({"name": 1}, "name"), ({"name": "other"}, "name"),
        ({"trigger_words": "a"}, "trigger_words"), ({"trigger_words": [""]}, "trigger_words.0"),
        ({"trigger_words": ["a" * 51]}, "trigger_words.0"), ({"trigger_words": [1]}, "trigger_words.0"),
        ({"trigger_words": ["a"] * 9}, "trigger_words"), ({"trigger_words": ["a\0"]}, "trigger_words.0"),
    ],
)  # fmt: skip
def test_patch_with_a_bad_field_changes_nothing(
    library: RunningService, body: Any, field: str
) -> None:
    put(library, lora(2.0), "other.safetensors")
    before = put(library)
    told = problem(library.client.patch("/loras/woodcut", json=body), 400, "invalid_request")
    assert fields(told) == [field]
    assert library.client.get("/loras/woodcut").json() == before


def test_delete_forgets_it_at_once(library: RunningService) -> None:
    put(library)
    assert library.client.delete("/loras/woodcut").status_code == 204
    problem(library.client.delete("/loras/woodcut"), 404, "not_found")
    assert names(library) == [] and not list(library.lora_dir.glob("*.safetensors"))


# A request's LoRAs


def test_request_names_become_content(library: RunningService) -> None:
    first = put(library, lora(1.0, metadata={"trigger_word": "w1"}), "a.safetensors")
    second = put(library, lora(2.0, metadata={"trigger_word": "w2"}), "b.safetensors")
    answer = submit(
        library,
        loras=[
            {"name": "b", "weight": -2, "trigger_word": ""},
            {"name": "a.safetensors", "trigger_word": " mine "},
        ],
    )
    assert loras_of(library, answer) == [
        {"name": "b", "sha256": second["sha256"], "weight": -2.0, "trigger_words": []},
        {"name": "a", "sha256": first["sha256"], "weight": 1.0, "trigger_words": ["mine"]},
    ]


def test_request_without_a_trigger_word_gets_the_librarys(library: RunningService) -> None:
    put(library, lora(metadata={"trigger_words": "w1, w2"}))
    assert loras_of(library, submit(library, loras=[{"name": "woodcut"}]))[0]["trigger_words"] == [
        "w1",
        "w2",
    ]


@pytest.mark.parametrize(("weight", "taken"), [({}, 1.0), ({"lora_weight": 0.25}, 0.25)])
def test_request_short_form_is_a_list_of_one(
    library: RunningService, weight: dict[str, float], taken: float
) -> None:
    sha256 = put(library)["sha256"]
    assert loras_of(library, submit(library, lora_name="woodcut", **weight)) == [
        {"name": "woodcut", "sha256": sha256, "weight": taken, "trigger_words": []}
    ]


@pytest.mark.parametrize("body", [{"loras": []}, {"loras": None}, {"lora_name": ""}, {}])
def test_request_that_names_none_has_none(library: RunningService, body: dict[str, Any]) -> None:
    put(library)
    assert loras_of(library, submit(library, **body)) == []


ONE = {"name": "woodcut"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"loras": [ONE], "lora_name": "woodcut"}, "lora_name"),
        ({"loras": [], "lora_name": "woodcut"}, "lora_name"),
        ({"lora_weight": 1.0}, "lora_weight"),
        ({"loras": [ONE], "lora_weight": 1.0}, "lora_weight"),
        ({"loras": [ONE, ONE]}, "loras.1.name"),
        ({"loras": [ONE, {"name": "Woodcut.safetensors"}]}, "loras.1.name"),
        ({"loras": [ONE] * 9}, "loras"),
        ({"loras": "woodcut"}, "loras"),
        ({"loras": ["woodcut"]}, "loras.0"),
        ({"loras": [{}]}, "loras.0.name"),
        ({"loras": [{"name": ""}]}, "loras.0.name"),
        ({"loras": [{"name": 1}]}, "loras.0.name"),
        ({"loras": [{"name": "a" * 401}]}, "loras.0.name"),
        ({"loras": [ONE | {"weight": 2.001}]}, "loras.0.weight"),
        ({"loras": [ONE | {"weight": -2.001}]}, "loras.0.weight"),
        ({"loras": [ONE | {"weight": "1"}]}, "loras.0.weight"),
        ({"loras": [ONE | {"weight": True}]}, "loras.0.weight"),
        ({"loras": [ONE | {"trigger_word": "a" * 51}]}, "loras.0.trigger_word"),
        ({"loras": [ONE | {"trigger_word": "a\0"}]}, "loras.0.trigger_word"),
        ({"loras": [ONE | {"wieght": 1}]}, "loras.0.wieght"),
        ({"lora_name": "woodcut", "lora_weight": 3}, "lora_weight"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/jobs", "/generate"])
def test_request_with_a_bad_lora_field_is_400_by_name(
    library: RunningService, path: str, body: dict[str, Any], field: str
) -> None:
    put(library)
    answer = library.client.post(path, json={"prompt": "a", **body})
    assert fields(problem(answer, 400, "invalid_request")) == [field]
    assert waiting(library) == 0


def test_request_with_a_mistyped_lora_field_is_told_the_right_one(library: RunningService) -> None:
    answer = submit(library, loras=[{"name": "a", "wieght": 1}])
    assert "did you mean weight?" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/jobs", "/generate"])
def test_request_with_an_unknown_lora_is_404_before_anything_is_queued(
    library: RunningService, path: str
) -> None:
    put(library)
    body = {"prompt": "a", "loras": [{"name": "woodcut"}, {"name": "woodcat"}]}
    told = problem(library.client.post(path, json=body), 404, "not_found")
    assert fields(told) == ["loras.1.name"] and "did you mean woodcut" in told["detail"]
    assert waiting(library) == 0


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (FLUX2, ["FLUX.2 Klein 4B", "FLUX.1"]),
        (FLUX1, ["hidden size 3072", "192"]),
        (SDXL, ["SDXL", "FLUX.1"]),
        (SD15, ["Stable Diffusion 1.5"]),
    ],
    ids=["FLUX.2", "FLUX.1 of another size", "SDXL", "Stable Diffusion 1.5"],
)
@pytest.mark.parametrize("path", ["/jobs", "/generate"])
def test_request_with_a_lora_of_another_model_is_409_before_anything_is_queued(
    library: RunningService, path: str, modules: dict[str, Any], words: list[str]
) -> None:
    put(library, lora(modules=modules))
    answer = library.client.post(path, json={"prompt": "a", "lora_name": "woodcut"})
    told = problem(answer, 409, "lora_incompatible")
    assert all(word in told["detail"] for word in words), told["detail"]
    assert fields(told) == ["lora_name"]
    assert waiting(library) == 0


def test_request_with_dora_is_409_that_says_so(library: RunningService) -> None:
    put(library, lora(parts=DORA))
    told = problem(submit(library, lora_name="woodcut"), 409, "lora_incompatible")
    assert "DoRA" in told["detail"]


def test_request_at_fault_elsewhere_is_400_whatever_its_loras(library: RunningService) -> None:
    told = problem(submit(library, width=100, lora_name="none"), 400, "invalid_request")
    assert fields(told) == ["width"]


# A job keeps its LoRAs


def pins(service: RunningService) -> set[str]:
    return {path.stem for path in service.lora_dir.glob(".pins/*/*.safetensors")}


def test_deleted_lora_stays_with_the_job_that_waits_and_goes_after_it(
    unpinned: RunningService,
) -> None:
    sha256 = put(unpinned)["sha256"]
    job_id = submit(unpinned, lora_name="woodcut").json()["id"]
    assert unpinned.client.delete("/loras/woodcut").status_code == 204
    assert names(unpinned) == []
    (pin,) = unpinned.lora_dir.glob(".pins/*/*.safetensors")
    assert hashlib.sha256(pin.read_bytes()).hexdigest() == sha256
    unpinned.client.post("/queue/clear")
    unpinned.wait_until(lambda: pins(unpinned) == set(), what="keeps the LoRA of an ended job")
    assert unpinned.job(job_id)["request"]["loras"][0]["sha256"] == sha256


def test_same_key_and_body_after_the_lora_is_gone_is_the_same_job(library: RunningService) -> None:
    put(library)
    again = {
        "json": {"prompt": "a", "lora_name": "woodcut"},
        "headers": {"Idempotency-Key": "key-of-woodcut"},
    }
    first = library.client.post("/jobs", **again)
    library.client.delete("/loras/woodcut")
    second = library.client.post("/jobs", **again)
    assert (second.status_code, second.json()["id"]) == (202, first.json()["id"])
    library.client.post("/queue/clear")


def test_lora_of_two_jobs_stays_until_both_have_ended(unpinned: RunningService) -> None:
    sha256 = put(unpinned)["sha256"]
    other = put(unpinned, lora(2.0), "other.safetensors")["sha256"]
    first = submit(unpinned, lora_name="woodcut").json()["id"]
    second = submit(unpinned, lora_name="woodcut").json()["id"]
    third = submit(unpinned, lora_name="other").json()["id"]
    unpinned.client.post(f"/jobs/{first}/cancel")
    unpinned.client.post(f"/jobs/{third}/cancel")
    unpinned.wait_until(lambda: other not in pins(unpinned), what="keeps the LoRA of an ended job")
    assert pins(unpinned) == {sha256}
    unpinned.client.post(f"/jobs/{second}/cancel")
    unpinned.wait_until(lambda: pins(unpinned) == set(), what="keeps the LoRA of an ended job")


def test_retry_of_a_job_whose_lora_is_gone_is_404_by_name(unpinned: RunningService) -> None:
    put(unpinned)
    job_id = submit(unpinned, lora_name="woodcut").json()["id"]
    unpinned.client.post(f"/jobs/{job_id}/cancel")
    unpinned.client.delete("/loras/woodcut")
    unpinned.wait_until(lambda: pins(unpinned) == set(), what="keeps the LoRA of an ended job")
    told = problem(unpinned.client.post(f"/jobs/{job_id}/retry"), 404, "not_found")
    assert "woodcut" in told["detail"]
    put(unpinned, filename="again.safetensors")
    assert unpinned.client.post(f"/jobs/{job_id}/retry").status_code == 202


# Defaults


def test_default_loras_are_those_of_requests_that_name_none(library: RunningService) -> None:
    sha256 = put(library)["sha256"]
    status = library.client.post("/apply-lora", json={"name": "woodcut", "weight": 0.5})
    assert defaults(status) == {
        "applied": True,
        "loras": [
            {
                "name": "woodcut", "sha256": sha256, "weight": 0.5, "trigger_words": [],
                "available": True,
            }
        ],
    }  # fmt: skip
    assert defaults(library.client.get("/lora-status")) == defaults(status)
    assert loras_of(library, submit(library))[0]["weight"] == 0.5
    assert loras_of(library, submit(library, loras=None))[0]["weight"] == 0.5
    assert loras_of(library, submit(library, loras=[])) == []
    assert loras_of(library, submit(library, lora_name="woodcut"))[0]["weight"] == 1.0


def test_default_follows_its_lora_through_a_new_name(library: RunningService) -> None:
    put(library)
    library.client.post("/apply-lora", json={"lora_name": "woodcut", "lora_weight": 0.5})
    library.client.patch("/loras/woodcut", json={"name": "ink", "trigger_words": ["1nk"]})
    (lora_,) = loras_of(library, submit(library))
    assert (lora_["name"], lora_["trigger_words"]) == ("ink", ["1nk"])


def test_default_of_a_deleted_lora_ends(library: RunningService) -> None:
    put(library)
    library.client.post("/apply-lora", json={"loras": [{"name": "woodcut"}]})
    library.client.delete("/loras/woodcut")
    assert defaults(library.client.get("/lora-status")) == NONE_APPLIED
    assert loras_of(library, submit(library)) == []


def test_default_that_somebody_else_deleted_refuses_and_says_what_to_do(
    library: RunningService,
) -> None:
    sha256 = put(library)["sha256"]
    library.client.post("/apply-lora", json={"name": "woodcut"})
    (library.lora_dir / f"{sha256}.safetensors").unlink()
    told = problem(submit(library), 404, "not_found")
    assert "woodcut" in told["detail"] and "/remove-lora" in told["detail"]
    assert library.client.get("/lora-status").json()["loras"][0]["available"] is False
    assert defaults(library.client.post("/remove-lora")) == NONE_APPLIED
    assert submit(library).status_code == 202


def test_default_is_ended_by_name(library: RunningService) -> None:
    put(library, lora(1.0), "a.safetensors")
    put(library, lora(2.0), "b.safetensors")
    library.client.post("/apply-lora", json={"loras": [{"name": "a"}, {"name": "b"}]})
    left = library.client.post("/remove-lora", json={"name": "a.safetensors"}).json()
    assert [each["name"] for each in left["loras"]] == ["b"]
    problem(library.client.post("/remove-lora", json={"lora_name": "a"}), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400), ({"name": ""}, 400), ({"name": "none"}, 404), ({"name": "woodcut", "weight": 9}, 400),
        ({"name": "woodcut", "loras": []}, 400), ({"loras": [{"name": "woodcut"}] * 2}, 400),
        ({"name": "odd"}, 409), ({"name": "woodcut", "x": 1}, 400),
    ],
)  # fmt: skip
def test_apply_of_what_cannot_be_is_refused_and_changes_nothing(
    library: RunningService, body: dict[str, Any], status: int
) -> None:
    put(library)
    of_no_model = {"lora_unet_single_blocks_0_linear2": (1000, 5000)}
    put(library, lora(modules=of_no_model), "odd.safetensors")
    answer = library.client.post("/apply-lora", json=body)
    assert answer.status_code == status, answer.text
    assert defaults(library.client.get("/lora-status")) == NONE_APPLIED


def test_defaults_and_library_are_there_after_a_restart(
    start_engine: Callable[..., RunningService], tmp_path: Path
) -> None:
    first = start_engine(folder=tmp_path / "one", wait_for_workers=False)
    entry = put(first, lora(metadata={"trigger_word": "w"}))
    first.client.post("/apply-lora", json={"name": "woodcut", "weight": -0.5})
    first.client.post("/queue/pause")
    job_id = submit(first, lora_name="woodcut").json()["id"]
    first.client.delete("/loras/woodcut")
    put(first, lora(2.0))
    first.client.post("/apply-lora", json={"name": "woodcut", "weight": 0.25})
    first.stop()
    second = start_engine(folder=tmp_path / "one")
    assert pins(second) == {entry["sha256"]}  # of the job that still waits
    assert names(second) == ["woodcut"]
    assert second.client.get("/lora-status").json()["loras"][0]["weight"] == 0.25
    second.client.post("/queue/resume")
    assert second.wait_for_job(job_id)["status"] == "succeeded"
    second.wait_until(lambda: pins(second) == set(), what="keeps the LoRA of an ended job")


def test_two_services_share_the_library(
    library: RunningService, start_engine: Callable[..., RunningService]
) -> None:
    second = start_engine(FLUX_LORA_DIR=str(library.lora_dir), wait_for_workers=False)
    put(library)
    assert names(second) == ["woodcut"]
    answer = submit(second, lora_name="woodcut")
    assert answer.status_code == 202
    library.client.delete("/loras/woodcut")
    assert names(second) == []


# What is said of it


def test_events_tell_what_happens_to_the_library(library: RunningService) -> None:
    with library.client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        next(lines)
        put(library)
        library.client.delete("/loras/woodcut")
        told = []
        for line in lines:
            if line.startswith("data:") and '"name":"woodcut"' in line:
                told.append(json.loads(line.removeprefix("data:"))["status"])
            if len(told) == 2:
                break
    assert told == ["ready", "deleted"]


def test_picture_says_which_loras_made_it(engine_service: RunningService) -> None:
    entry = put(engine_service, lora(12.0, metadata={"trigger_word": "w00d"}))
    answer = engine_service.client.post(
        "/generate?format=raw",
        json={"prompt": "a house", "lora_name": "woodcut", "lora_weight": 0.8},
    )
    engine_service.client.delete("/loras/woodcut")
    texts = read_png_texts(answer.content)
    assert json.loads(texts["flux_api"])["request"]["loras"] == [
        {"name": "woodcut", "sha256": entry["sha256"], "weight": 0.8, "trigger_words": ["w00d"]}
    ]
    first, last = texts["parameters"].splitlines()
    assert first == "w00d, a house <lora:woodcut:0.8>"
    assert last.endswith(f'Lora hashes: "woodcut: {entry["sha256"][:10]}"')


def test_openapi_describes_the_bodies(running: RunningService) -> None:
    paths = running.client.get("/openapi.json").json()["paths"]
    raw = paths["/loras/{name}"]["put"]["requestBody"]["content"]
    form = paths["/loras"]["post"]["requestBody"]["content"]
    assert list(raw) == ["application/octet-stream"] and list(form) == ["multipart/form-data"]
