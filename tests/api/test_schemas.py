"""Bad bodies: each is refused by the name of its field, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.schemas import ALIASES, GenerateBody
from tests.service import RunningService

JSON = {"Content-Type": "application/json"}
MAX_SEED = 2**53 - 1

# A value of each JSON type, and which of them a field takes.
VALUES: dict[str, Any] = {
    "text": "text",
    "numeric text": "256",
    "whole": 1,
    "fraction": 1.5,
    "whole as fraction": 1.0,
    "true": True,
    "false": False,
    "list": ["a"],
    "empty list": [],
    "object": {"a": 1},
    "null": None,
}
WHOLE = {"whole", "null"}
NUMBER = {"whole", "fraction", "whole as fraction", "null"}
TAKES: dict[str, set[str]] = {
    "prompt": {"text", "numeric text"},
    "negative_prompt": {"text", "numeric text", "null"},
    "model": {"null"},
    "backend": {"null"},
    "precision": {"null"},
    "width": {"null"},
    "height": {"null"},
    "num_inference_steps": WHOLE,
    "guidance_scale": NUMBER,
    "true_cfg_scale": NUMBER,
    "seed": WHOLE,
    "num_images": WHOLE,
    "output_format": {"null"},
    "output_quality": WHOLE,
    "metadata": {"null"},
    "loras": {"empty list", "null"},
    "lora_name": {"text", "numeric text", "null"},
    "lora_weight": {"null"},
    "image": {"text", "null"},  # base64 of something, which is looked at later
    "mask": {"null"},  # and strength: without an image there is nothing that they go with
    "strength": {"null"},
    "reference_images": {"empty list", "null"},  # the small model takes none
}
OUT_OF_RANGE = [
    ("prompt", ""),
    ("prompt", " \t\n "),
    ("prompt", "a" * 2001),
    ("prompt", "🎈" * 2001),
    ("negative_prompt", "a" * 2001),
    ("model", ""),
    ("model", "no-such-model"),
    ("model", "../../etc/passwd"),
    ("model", "EMBEDDED"),
    ("backend", ""),
    ("backend", "no-such-backend"),
    ("precision", ""),
    ("precision", "fp2"),
    ("precision", "fp4"),  # another service's
    ("precision", "BF16"),
    ("width", 112),
    ("width", 528),
    ("width", 136),
    ("width", 0),
    ("width", -128),
    ("height", 112),
    ("height", 528),
    ("height", 129),
    ("height", 10**30),
    ("num_inference_steps", 0),
    ("num_inference_steps", -1),
    ("num_inference_steps", 101),
    ("guidance_scale", -0.001),
    ("guidance_scale", 20.001),
    ("true_cfg_scale", -1),
    ("true_cfg_scale", 21),
    ("seed", -2),
    ("seed", MAX_SEED + 1),
    ("num_images", 0),
    ("num_images", -1),
    ("num_images", 9),
    ("output_format", "gif"),
    ("output_format", "PNG"),
    ("output_format", "jpg"),
    ("output_format", ""),
    ("output_quality", 0),
    ("output_quality", 101),
]
NUMBERS = [field for field in TAKES if TAKES[field] in (WHOLE, NUMBER)] + ["width", "height"]
NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"]
TEXTS = ["prompt", "negative_prompt", "model", "backend", "metadata"]
NO_TEXT = ["\\u0000", "\\u0007", "\\u001b", "\\u007f", "\\u0085", "\\ud800", "\\udfff"]


def traces(service: RunningService) -> tuple[Any, ...]:
    """Everything a request may leave behind: jobs by status, the line, files."""
    counts = service.client.get("/queue-stats").json()
    counts = {name: counts[name] for name in ("queued", "running", "succeeded", "failed")}
    return counts, service.client.get("/jobs?limit=1").json()["jobs"], service.files()


def refused(
    service: RunningService,
    content: bytes,
    *,
    status: int = 400,
    code: str = "invalid_request",
    path: str = "/generate",
    headers: dict[str, str] = JSON,
) -> dict[str, Any]:
    """The problem that a body is refused with; nothing of the body may stay."""
    with nothing_left(service):
        return problem_of(service, content, status=status, code=code, path=path, headers=headers)


@contextmanager
def nothing_left(service: RunningService) -> Iterator[None]:
    """What is asked within leaves nothing behind."""
    before = traces(service)
    yield
    assert traces(service) == before


def problem_of(
    service: RunningService,
    content: bytes,
    *,
    status: int = 400,
    code: str = "invalid_request",
    path: str = "/generate",
    headers: dict[str, str] = JSON,
) -> dict[str, Any]:
    answer = service.client.post(path, content=content, headers=headers)
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    assert problem["type"] and problem["title"] and problem["detail"]
    return problem


def fields(problem: dict[str, Any]) -> set[str]:
    assert all(error["message"] for error in problem["errors"])
    return {error["field"] for error in problem["errors"]}


def body(**values: Any) -> bytes:
    return json.dumps({"prompt": "a red balloon", **values}).encode()


def raw_body(field: str, literal: str) -> bytes:
    """A body with a JSON literal that no Python value gives."""
    pair = f'"{field}": {literal}'
    return ("{%s}" % (pair if field == "prompt" else f'"prompt": "a", {pair}')).encode()


def test_takes_table_has_every_field() -> None:
    assert set(TAKES) == set(GenerateBody.model_fields)


# One field at fault


@pytest.mark.parametrize("field", TAKES)
def test_body_field_of_a_wrong_type_is_refused(engine_service: RunningService, field: str) -> None:
    wrong = {kind: value for kind, value in VALUES.items() if kind not in TAKES[field]}
    assert wrong
    with nothing_left(engine_service):
        for kind, value in wrong.items():
            problem = problem_of(engine_service, body(**{field: value}))
            assert {name.partition(".")[0] for name in fields(problem)} == {field}, kind


@pytest.mark.parametrize("field", dict(OUT_OF_RANGE))
def test_body_field_out_of_range_is_refused(engine_service: RunningService, field: str) -> None:
    with nothing_left(engine_service):
        for value in (value for name, value in OUT_OF_RANGE if name == field):
            problem = problem_of(engine_service, body(**{field: value}))
            assert fields(problem) == {field}, str(value)[:12]


@pytest.mark.parametrize("field", NUMBERS)
def test_body_number_that_is_not_finite_is_refused(
    engine_service: RunningService, field: str
) -> None:
    with nothing_left(engine_service):
        for literal in NOT_FINITE:
            problem = problem_of(engine_service, raw_body(field, literal))
            assert fields(problem) == {field}, literal


@pytest.mark.parametrize("field", NUMBERS)
def test_body_number_of_4000_digits_is_refused(engine_service: RunningService, field: str) -> None:
    assert fields(refused(engine_service, raw_body(field, "9" * 4000))) == {field}


@pytest.mark.parametrize("field", NUMBERS)
def test_body_number_of_5000_digits_is_refused(engine_service: RunningService, field: str) -> None:
    """More digits than Python reads as a number; the whole body may be named then."""
    assert fields(refused(engine_service, raw_body(field, "9" * 5000))) <= {field, "body"}


@pytest.mark.parametrize("field", TEXTS)
def test_body_text_with_what_is_no_text_is_refused(
    engine_service: RunningService, field: str
) -> None:
    with nothing_left(engine_service):
        for escape in NO_TEXT:
            literal, named = f'"a{escape}b"', field
            if field == "metadata":
                literal, named = f'{{"tags": [{literal}]}}', "metadata.tags.0"
            problem = problem_of(engine_service, raw_body(field, literal))
            assert fields(problem) == {named}, escape


@pytest.mark.parametrize("text", ["a\tb\nc\r\nd", "\u202eabc", "\ufeffa", "\U0010ffff", "e\u0301"])
def test_body_text_that_is_only_odd_is_taken(engine_service: RunningService, text: str) -> None:
    answer = engine_service.generate(prompt=text)
    assert answer.json()["prompt"] == text


def test_body_prompt_of_ten_megabytes_is_refused(engine_service: RunningService) -> None:
    problem = refused(engine_service, body(prompt="a" * 10_000_000))
    assert fields(problem) == {"prompt"}
    assert "2000" in problem["detail"]
    assert len(json.dumps(problem)) < 2000


@pytest.mark.parametrize("length", [1, 2000])
def test_body_prompt_at_its_limits_is_taken(engine_service: RunningService, length: int) -> None:
    answer = engine_service.generate(prompt="  " + "ä" * length + "\n")
    assert answer.json()["prompt"] == "ä" * length


@pytest.mark.parametrize("name", ["num_images", "output_quality"])
def test_body_upper_limit_is_taken(engine_service: RunningService, name: str) -> None:
    limit = {"num_images": 8, "output_quality": 100}[name]
    assert engine_service.generate(**{name: limit}).status_code == 200


@pytest.mark.parametrize(
    "tags",
    [["a"] * 17, ["a" * 65], [""], ["  "], [1], [None], [["a"]], "a", {"a": "b"}, None, 5],
    ids=str,
)
def test_body_wrong_tags_are_refused(engine_service: RunningService, tags: Any) -> None:
    (field,) = fields(refused(engine_service, body(metadata={"tags": tags})))
    assert field.startswith("metadata.tags")


def test_body_unknown_field_inside_metadata_is_refused(engine_service: RunningService) -> None:
    problem = refused(engine_service, body(metadata={"tag": ["a"]}))
    assert fields(problem) == {"metadata.tag"}


@pytest.mark.parametrize(("seed", "num_images"), [(MAX_SEED, 2), (MAX_SEED - 6, 8)])
def test_body_last_seed_over_the_limit_is_refused(
    engine_service: RunningService, seed: int, num_images: int
) -> None:
    assert fields(refused(engine_service, body(seed=seed, num_images=num_images))) == {"seed"}


def test_body_last_seed_at_the_limit_is_taken(engine_service: RunningService) -> None:
    answer = engine_service.generate(seed=MAX_SEED - 7, num_images=8)
    assert answer.json()["images"][-1]["seed"] == MAX_SEED


def test_body_without_prompt_is_refused(engine_service: RunningService) -> None:
    assert fields(refused(engine_service, b"{}")) == {"prompt"}


def test_body_wrong_size_message_says_which_sizes_there_are(
    engine_service: RunningService,
) -> None:
    message = refused(engine_service, body(width=1000))["errors"][0]["message"]
    assert all(part in message for part in ("1000", "16", "128", "512", "embedded"))


def test_body_unknown_model_message_lists_the_models(engine_service: RunningService) -> None:
    message = refused(engine_service, body(model="flux-pro"))["errors"][0]["message"]
    assert "flux-pro" in message and "embedded" in message


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [("promt", "prompt"), ("widht", "width"), ("step", "steps"), ("negativ_prompt", "negative_prompt")],
)  # fmt: skip
def test_body_unknown_field_is_refused_with_a_suggestion(
    engine_service: RunningService, name: str, meant: str
) -> None:
    problem = refused(engine_service, body(**{name: 1}))
    assert fields(problem) == {name}
    assert f"did you mean {meant}?" in problem["detail"]


def test_body_unknown_field_far_from_all_is_refused_without_suggestion(
    engine_service: RunningService,
) -> None:
    problem = refused(engine_service, body(zzzzzzzz=1))
    assert fields(problem) == {"zzzzzzzz"}
    assert "did you mean" not in problem["detail"]


@pytest.mark.parametrize("name", ["", "\x00", "__proto__", "prompt ", "Prompt", "a" * 1000])
def test_body_odd_field_name_is_refused(engine_service: RunningService, name: str) -> None:
    refused(engine_service, body(**{name: 1}))


def test_body_field_name_of_a_lone_surrogate_is_refused(engine_service: RunningService) -> None:
    refused(engine_service, rb'{"prompt": "a", "\ud800": 1}')


def test_body_field_name_of_a_megabyte_is_not_repeated(engine_service: RunningService) -> None:
    problem = refused(engine_service, body(**{"a" * 2**20: 1}))
    assert len(json.dumps(problem)) < 20_000


def test_body_very_many_unknown_fields_give_a_short_answer(engine_service: RunningService) -> None:
    """Each fault costs time and space of the one process that serves everybody."""
    problem = refused(engine_service, body(**{f"{i:x}": 1 for i in range(20_000)}))
    assert len(problem["errors"]) <= 100
    assert len(json.dumps(problem)) < 20_000


@pytest.mark.parametrize("where", ["top", "metadata"])
def test_body_very_many_unknown_fields_cost_no_more_than_reading_them(
    engine_service: RunningService, where: str
) -> None:
    """One process answers everybody: a body must not keep it busy for long."""
    many = {f"{i:x}": 1 for i in range(100_000)}

    process = psutil.Process(engine_service.process.pid)

    def seconds(content: bytes) -> float:
        """Of the processor, which nobody else has meanwhile."""
        before = sum(process.cpu_times()[:2])
        assert engine_service.client.post("/generate", content=content, headers=JSON).is_error
        return sum(process.cpu_times()[:2]) - before

    read_only = seconds(body(prompt=many))
    assert seconds(body(**many) if where == "top" else body(metadata=many)) < 4 * read_only + 0.2


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_body_alias_and_name_with_two_values_is_refused(
    engine_service: RunningService, alias: str, name: str
) -> None:
    problem = refused(engine_service, body(**{alias: 2, name: 3}))
    assert fields(problem) <= {alias, name}


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_body_alias_is_checked_as_its_field(
    engine_service: RunningService, alias: str, name: str
) -> None:
    problem = refused(engine_service, body(**{alias: -1}))
    assert fields(problem) <= {alias, name}
    assert alias in problem["detail"]


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_body_null_alias_beside_its_name_means_left_out(
    engine_service: RunningService, alias: str, name: str
) -> None:
    assert engine_service.generate(**{alias: None, name: 3}).json()[name] == 3


@pytest.mark.parametrize("field", ["prompt", "seed", "width"])
def test_body_with_a_field_twice_is_refused(engine_service: RunningService, field: str) -> None:
    literal = {"prompt": '"a"', "seed": "1", "width": "128"}[field]
    content = f'{{"prompt": "b", "{field}": {literal}, "{field}": {literal}}}'.encode()
    assert fields(refused(engine_service, content)) <= {field, "body"}


# What the model does not take


@pytest.mark.parametrize("value", ["aGVsbG8=", ["aGVsbG8="], ["aGVsbG8="] * 4])
def test_body_references_to_a_model_that_takes_none_name_those_that_do(
    engine_service: RunningService, value: Any
) -> None:
    problem = refused(engine_service, body(reference_images=value))
    assert fields(problem) == {"reference_images"}
    assert "flux2-klein-4b" in problem["detail"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (["aGVsbG8="] * 5, "reference_images"),
        ([1], "reference_images.0"),
        (["aGVsbG8=", ""], "reference_images.1"),
        ({}, "reference_images"),
    ],
    ids=["five", "number", "empty", "object"],
)
def test_body_references_that_are_no_pictures_are_named(
    engine_service: RunningService, value: Any, named: str
) -> None:
    assert fields(refused(engine_service, body(reference_images=value))) == {named}


def test_digest_tells_references_apart_by_content_and_order() -> None:
    several = [[], ["aa"], ["bb"], ["aa", "bb"], ["bb", "aa"], ["aabb"]]
    bodies = [GenerateBody(prompt="a", reference_images=each) for each in several]
    bodies.append(GenerateBody(prompt="a", image="aa"))
    assert len({each.digest() for each in bodies}) == len(bodies)


@pytest.mark.parametrize("model", ["flux-schnell", "flux-dev"])
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
def test_body_model_that_needs_a_gpu_is_409_with_the_reason(
    engine_service: RunningService, path: str, model: str
) -> None:
    content = body(model=model, width=256, height=256)
    problem = refused(engine_service, content, path=path, status=409, code="unsupported_gpu")
    assert fields(problem) == {"model"}
    assert "GPU" in problem["detail"] and "embedded" in problem["detail"]


# No body at all


@pytest.mark.parametrize("path", ["/generate", "/jobs"])
@pytest.mark.parametrize(
    "content",
    [
        b"", b" ", b"{", b'{"prompt": "a"', b'{"prompt": "a",}', b"{'prompt': 'a'}", b"prompt=a",
        b'{"prompt": "a"} {"prompt": "b"}', b"[]", b'[{"prompt": "a"}]', b'"a"', b"1", b"true",
        b"null", b"NaN", b"\xff\xfe\x00", b'{"prompt": "\xff"}', b'{"prompt": "a\nb"}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\x00" * 100, b"\x89PNG\r\n\x1a\n",
    ],
    ids=lambda content: repr(content[:12]) + str(len(content)),
)  # fmt: skip
def test_body_that_is_no_json_object_is_refused(
    engine_service: RunningService, path: str, content: bytes
) -> None:
    assert fields(refused(engine_service, content, path=path)) == {"body"}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (raw_body("seed", "9" * 5000), "digits"),
        (b"[" * 100_000, "nest"),
        (b'{"prompt": "\xff"}', "utf-8"),
    ],
    ids=["long number", "deep nesting", "not UTF-8"],
)
def test_body_that_cannot_be_read_message_says_why(
    engine_service: RunningService, content: bytes, word: str
) -> None:
    assert word in refused(engine_service, content)["detail"].lower()


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "image/png", ""],
)
def test_body_of_another_content_type_is_refused(
    engine_service: RunningService, content_type: str
) -> None:
    problem = refused(engine_service, body(), headers={"Content-Type": content_type})
    assert fields(problem) == {"body"}
    assert "application/json" in problem["detail"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_body_of_json_in_other_words_is_taken(
    engine_service: RunningService, content_type: str
) -> None:
    answer = engine_service.client.post(
        "/generate", content=body(), headers={"Content-Type": content_type}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("value", ["xml", "RAW", "", "raw,json"])
def test_query_format_of_another_name_is_refused(
    engine_service: RunningService, value: str
) -> None:
    problem = refused(engine_service, body(), path=f"/generate?format={value}")
    assert fields(problem) == {"format"}


# Over the limit


def over_the_limit(service: RunningService, content: Any) -> httpx2.Response:
    """Sent over a connection of its own: the service closes it with the body half-way."""
    return httpx2.post(f"{service.url}/generate", content=content, headers=JSON, timeout=120)


@pytest.mark.parametrize("how", ["declared", "chunked"])
def test_body_over_the_limit_is_413(engine_service: RunningService, how: str) -> None:
    before = traces(engine_service)
    piece = b"a" * 2**20
    answer = over_the_limit(engine_service, piece * 31 if how == "declared" else iter([piece] * 31))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (413, "too_large")
    assert fields(problem) == {"body"}
    assert "FLUX_MAX_BODY_BYTES" in problem["detail"]
    assert traces(engine_service) == before


def test_body_at_the_limit_is_read(engine_service: RunningService) -> None:
    content = body().ljust(16 * 2**20)
    assert over_the_limit(engine_service, content).status_code == 200


# Anything else

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_names = st.sampled_from([*GenerateBody.model_fields, *ALIASES]) | st.text(max_size=8)
_bodies = _values | st.dictionaries(_names, _values, max_size=6) | st.fixed_dictionaries(
    {"prompt": st.text(max_size=30)},
    optional={
        "width": st.integers(100, 600),
        "height": st.sampled_from([128, 256, 512]),
        "steps": st.integers(-1, 5),
        "guidance": st.floats(),
        "seed": st.none() | st.integers(-5, 2**54),
        "num_images": st.integers(-1, 3),
        "output_format": st.sampled_from(["png", "jpeg", "webp", "gif"]),
        "metadata": st.fixed_dictionaries({"tags": st.lists(st.text(max_size=5), max_size=3)}),
    },
)  # fmt: skip


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=_bodies)
def test_body_of_any_json_is_drawn_or_refused_as_a_problem(
    engine_service: RunningService, content: Any
) -> None:
    answer = engine_service.client.post("/generate", content=json.dumps(content), headers=JSON)
    if answer.status_code == 200:
        assert isinstance(content, dict) and content["prompt"].strip() == answer.json()["prompt"]
    else:
        names_loras = isinstance(content, dict) and (
            content.get("loras") or content.get("lora_name")
        )
        names_pictures = isinstance(content, dict) and (content.get("image") or content.get("mask"))
        accepted = {400, 501} | ({404} if names_loras else set())
        assert answer.status_code in accepted | ({404, 415} if names_pictures else set())
        assert answer.headers["content-type"] == "application/problem+json"
        assert fields(answer.json())


# Several faults in one answer


@pytest.mark.parametrize("path", ["/generate", "/jobs", "/generate?format=raw"])
@pytest.mark.parametrize(
    ("faults", "named"),
    [
        ({"prompt": "", "seed": "1", "width": 1.5}, None),
        ({"width": 100, "height": 4096}, None),
        ({"prompt": "", "width": 100, "height": 4096, "seed": "one", "backend": "x", "stepz": 1}, None),
        ({"metadata": {"tags": [1]}, "width": 100}, "metadata.tags.0 width"),
        ({"steps": 0, "width": 100}, "num_inference_steps width"),
        ({"steps": 2, "num_inference_steps": 3, "width": 100, "seed": -2}, "steps width seed"),
        ({"steps": True, "num_inference_steps": 1, "width": 100}, "steps width"),
        ({"steps": 0, "num_inference_steps": 101}, None),
        ({"mask": "aGVsbG8=", "prompt": "", "width": 100}, None),
        ({"seed": MAX_SEED, "num_images": 2, "output_quality": 0}, "seed output_quality"),
        ({"seed": MAX_SEED, "num_images": 9, "width": 100}, "num_images width"),
        ({"model": " embedded ", "width": 100, "seed": -2}, "width seed"),
        ({"prompt": "", "model": "none", "width": 100}, "prompt model"),
        ({"prompt": "", "model": "none", "backend": "none"}, None),
        ({"prompt": "", "model": 1, "backend": "none", "width": 100}, "prompt model backend"),
        ({"model": 1, "backend": "flux"}, "model"),
    ],
    ids=str,
)  # fmt: skip
def test_body_with_several_faults_names_all_in_one_answer(
    engine_service: RunningService, path: str, faults: dict[str, Any], named: str | None
) -> None:
    """A model that is not there has no limits to name."""
    problem = refused(engine_service, body(**faults), path=path)
    assert fields(problem) == (set(faults) if named is None else set(named.split()))
    assert len(problem["errors"]) == len(fields(problem))


def test_query_and_body_at_fault_are_named_in_one_answer(engine_service: RunningService) -> None:
    problem = refused(engine_service, body(width=100, seed=-2), path="/generate?format=xml")
    assert fields(problem) == {"format", "width", "seed"}
