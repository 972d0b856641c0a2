"""`flux generate`: what comes of it on disk, on standard output and as the exit status."""

from __future__ import annotations

import io
import json
import signal
import time
import uuid
from pathlib import Path

import pytest
from PIL import Image

from cli.client import Client
from cli.failures import Failure, Status
from cli.job import submit
from tests.pictures import file_of, gradient
from tests.service import RunningService

SMALL = ("--size", "128x128", "--steps", "1")


def test_generate_writes_the_picture_of_the_request(at) -> None:
    done = at("generate", "a red balloon", "-o", "out.png", "--seed", "7", *SMALL)
    assert (done.status, done.out) == (0, "out.png\n")
    with Image.open("out.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))
        assert '"seed": 7' in picture.text["flux_api"] or '"seed":7' in picture.text["flux_api"]
    assert "seed 7" in done.err and "embedded" in done.err


def test_generate_with_every_field_sends_it(at, service: RunningService) -> None:
    Path("begin.png").write_bytes(file_of(gradient(128, 128)))
    done = at(
        "generate", "a boat", "-o", "out.webp", "--json", "--negative", "fog", "--size", "128x144",
        "-s", "2", "--seed", "11", "-g", "0", "--cfg", "1.5", "-m", "embedded", "--backend", "flux",
        "--lora", "sketch:0.5", "--lora", "sepia", "-i", "begin.png", "--strength", "0.5",
        "--quality", "60", "--tag", "a", "--tag", "b",
    )  # fmt: skip
    assert done.status == 0, done.err
    request = service.job(done.json["id"])["request"]
    assert (request["width"], request["height"], request["seed"]) == (128, 144, 11)
    assert (request["negative_prompt"], request["true_cfg_scale"]) == ("fog", 1.5)
    assert [(each["name"], each["weight"]) for each in request["loras"]] == [
        ("sketch", 0.5),
        ("sepia", 1.0),
    ]
    assert (request["strength"], request["num_inference_steps"]) == (0.5, 2)
    assert (request["output_format"], request["output_quality"]) == ("webp", 60)
    assert request["metadata"] == {"tags": ["a", "b"]}
    with Image.open("out.webp") as picture:
        assert picture.format == "WEBP"


def test_generate_with_json_tells_the_result_and_nothing_else(engine) -> None:
    done = engine("generate", "one", "-o", "out.png", "--json", *SMALL)
    assert (done.json["status"], done.json["files"]) == ("succeeded", ["out.png"])
    assert done.err == ""


def test_generate_of_several_numbers_them(engine) -> None:
    done = engine("generate", "several", "-n", "3", "-o", "out.png", *SMALL)
    assert done.out.split() == ["out-0.png", "out-1.png", "out-2.png"]
    assert len({Path(name).read_bytes() for name in done.out.split()}) == 3


def test_generate_into_a_folder_names_files_by_the_job(engine) -> None:
    Path("pictures").mkdir()
    done = engine("generate", "folder", "-o", "pictures", "--json", *SMALL)
    assert done.json["files"] == [f"pictures/{done.json['id']}-0.png"]


def test_generate_replaces_a_file_whole(engine) -> None:
    Path("out.png").write_bytes(b"old")
    assert engine("generate", "again", "-o", "out.png", *SMALL).status == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in Path().iterdir()] == ["out.png"]


def test_generate_reads_the_prompt_from_standard_input(engine, engine_service, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    done = engine("generate", "-", "-o", "out.png", "--json", *SMALL)
    assert engine_service.job(done.json["id"])["request"]["prompt"] == "from a pipe"


def test_generate_detached_prints_the_id_alone(engine, engine_service: RunningService) -> None:
    done = engine("generate", "later", "--detach", *SMALL)
    assert done.status == 0 and done.err == ""
    engine_service.wait_for_job(done.out.strip(), "succeeded")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("-o", "out.gif"), Status.USAGE, "out.gif"),
        (("-o", "nowhere/out.png"), Status.WRONG, "nowhere"),
        (("--size", "128"), Status.USAGE, "--size"),
        (("--lora", "sketch:strong"), Status.USAGE, "strong"),
        (("--lora", "sketch:nan"), Status.USAGE, "nan"),
        (("--guidance", "inf"), Status.USAGE, "--guidance"),
        (("--image", "nofile.png"), Status.USAGE, "nofile.png"),
        (("--no-lora", "--lora", "sketch"), Status.USAGE, "--no-lora"),
        (("--compare", "-n", "2"), Status.USAGE, "--compare"),
        (("--compare",), Status.USAGE, "--url"),  # which the fixture names
        (("--detach", "-o", "out.png"), Status.USAGE, "--detach"),
        (("-o", "-", "--json"), Status.USAGE, "-o"),
        (("--steps", "many"), Status.USAGE, "--steps"),
        (("--size", "100x100"), Status.REFUSED, "width"),
        (("--lora", "nobody:0.5"), Status.REFUSED, "nobody"),
        (("--model", "nonesuch"), Status.REFUSED, "nonesuch"),
        (("--mask", "12345678"), Status.REFUSED, "image"),
        (("--key", "a b"), Status.USAGE, "--key"),
    ],
)
def test_generate_that_cannot_be_names_the_option_or_field_and_writes_nothing(
    engine, arguments: tuple[str, ...], status: Status, word: str
) -> None:
    done = engine("generate", "a red balloon", *arguments)
    assert (done.status, done.out if "--json" not in arguments else "") == (status, "")
    assert word in done.err and "Traceback" not in done.err
    assert list(Path().iterdir()) == []


def test_generate_refused_tells_the_services_fields_as_json(engine) -> None:
    done = engine("generate", " ", "--size", "100x128", "--json")
    assert done.status == Status.REFUSED
    assert {each["field"] for each in done.error["errors"]} == {"prompt", "width"}
    assert (done.error["http_status"], done.error["code"]) == (400, "invalid_request")
    assert done.error["exit_status"] == 4


def test_generate_of_a_job_that_fails_says_why_and_writes_nothing(engine) -> None:
    done = engine("generate", "raise", "-o", "out.png", "--json", *SMALL)
    assert (done.status, done.error["code"]) == (Status.FAILED, "internal")
    assert done.error["job_id"] and list(Path().iterdir()) == []


def test_generate_of_a_prompt_that_is_no_text_is_refused_here(engine) -> None:
    done = engine("generate", "\udcff", *SMALL)
    assert done.status == Status.USAGE and "UTF-8" in done.err


def test_generate_into_a_folder_that_is_read_only_says_so_before_it_draws(
    engine, engine_service: RunningService, monkeypatch
) -> None:
    prompt = f"nowhere to go {uuid.uuid4().hex}"
    # Root may write everywhere, so the system's answer is taken out of its mouth.
    monkeypatch.setattr("cli.files.os.access", lambda *_: False)
    done = engine("generate", prompt, "-o", "out.png", *SMALL)
    assert done.status == Status.WRONG and "cannot be written" in done.err
    jobs = engine_service.client.get("/jobs", params={"limit": 20}).json()["jobs"]
    assert prompt not in [job["request"]["prompt"] for job in jobs]


def test_generate_whose_picture_finds_no_room_says_where_it_is(engine, monkeypatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cli.files.os.replace", full)
        done = engine("generate", "no room", "-o", "out.png", "--json", *SMALL)
    assert done.status == Status.WRONG and "No space left" in done.error["message"]
    assert f"queue fetch {done.error['job_id']}" in done.error["message"]
    assert list(Path().iterdir()) == []


# Cancelling


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_generate_that_is_ended_cancels_its_job(
    program, engine_service: RunningService, number: signal.Signals
) -> None:
    prompt = f"hold {uuid.uuid4().hex}"
    process = program("generate", prompt, "--json", *SMALL, FLUX_URL=engine_service.url)
    job_id = running(engine_service, prompt)
    process.send_signal(number)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == Status.INTERRUPTED
    assert json.loads(out)["error"]["job_ids"] == [job_id]
    engine_service.wait_for_job(job_id, "cancelled")


def test_generate_of_a_job_that_somebody_cancels_says_so(
    program, engine_service: RunningService
) -> None:
    prompt = f"hold {uuid.uuid4().hex}"
    process = program("generate", prompt, *SMALL, FLUX_URL=engine_service.url)
    job_id = running(engine_service, prompt)
    engine_service.client.post(f"/jobs/{job_id}/cancel")
    _, err = process.communicate(timeout=180)
    assert process.returncode == Status.CANCELLED and job_id in err


def test_submit_that_is_interrupted_before_its_answer_cancels_all_the_same(
    engine_service: RunningService, monkeypatch
) -> None:
    """Ctrl-C between a request and its answer: the id is not known, its job is there."""
    prompt = f"hold {uuid.uuid4().hex}"
    with Client(engine_service.url, None) as client:
        ask = client.ask

        def interrupted(method: str, path: str, **options):
            answer = ask(method, path, **options)
            monkeypatch.setattr(client, "ask", ask)
            raise KeyboardInterrupt(answer["id"])

        monkeypatch.setattr(client, "ask", interrupted)
        with pytest.raises(Failure) as ended:
            submit(client, {"prompt": prompt, "width": 128, "height": 128})
    assert ended.value.status is Status.INTERRUPTED
    (job_id,) = ended.value.more["job_ids"]
    assert engine_service.wait_for_job(job_id, "cancelled")["request"]["prompt"] == prompt


def running(service: RunningService, prompt: str) -> str:
    """The job with this prompt, when it runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        jobs = service.client.get("/jobs", params={"status": "running"}).json()["jobs"]
        for job in jobs:
            if job["request"]["prompt"] == prompt:
                return job["id"]
        time.sleep(0.02)
    raise AssertionError(f"no job {prompt!r} runs")


def test_generate_goes_on_when_its_service_comes_back(
    start_engine, program, tmp_path: Path
) -> None:
    """The queue is on disk: a service that is killed in the middle draws it after its next start."""
    running_service: RunningService = start_engine()
    process = program(
        "generate", "hold until", "-o", "out.png", *SMALL, FLUX_URL=running_service.url
    )
    running(running_service, "hold until")
    running_service.kill()
    running_service.start()
    running_service.release("until")
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (0, "out.png\n"), err
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (128, 128)


# Comparing


@pytest.fixture
def both(flux, service: RunningService, engine_service: RunningService, monkeypatch):
    """Two services that answer, as FP4 and as BF16."""
    monkeypatch.setenv("BF16_PORT", str(service.port))
    monkeypatch.setenv("FP4_PORT", str(engine_service.port))
    return flux


def test_compare_writes_both_and_both_side_by_side(both) -> None:
    done = both("generate", "a red balloon", "--compare", "-o", "out.png", "--json", *SMALL)
    assert done.status == 0, done.err
    told = done.json
    assert told["files"] == {"compare": "out.png", "bf16": "out-bf16.png", "fp4": "out-fp4.png"}
    assert told["jobs"]["bf16"]["seed"] == told["jobs"]["fp4"]["seed"] == told["seed"]
    assert 0 < told["psnr_db"] < 60 and not told["identical"]
    with Image.open("out.png") as sheet, Image.open("out-fp4.png") as fp4:
        assert sheet.width > 2 * fp4.width and sheet.height > fp4.height
        right = sheet.convert("RGB").crop((sheet.width - 128, 0, sheet.width, 128))
        assert right.tobytes() == fp4.convert("RGB").tobytes()


def test_compare_where_one_is_not_there_cancels_the_other(
    both, engine_service: RunningService, monkeypatch
) -> None:
    prompt = f"hold {uuid.uuid4().hex}"
    monkeypatch.setenv("BF16_PORT", str(engine_service.port))
    monkeypatch.setenv("FP4_PORT", "1")
    done = both("generate", prompt, "--compare", "-o", "out.png", *SMALL)
    assert done.status == Status.UNREACHABLE and "fp4" in done.err
    jobs = engine_service.client.get("/jobs", params={"limit": 20}).json()["jobs"]
    (job,) = [job for job in jobs if job["request"]["prompt"] == prompt]
    engine_service.wait_for_job(job["id"], "cancelled")
    assert list(Path().iterdir()) == []


def test_compare_where_one_fails_cancels_the_other(
    both, service: RunningService, engine_service: RunningService, monkeypatch
) -> None:
    """The first would draw for minutes; nobody waits for it."""
    prompt = f"raise {uuid.uuid4().hex}"
    large = ("--size", "512x512", "--steps", "100")
    done = both("generate", prompt, "--compare", "-o", "out.png", *large)
    assert done.status == Status.FAILED
    jobs = service.client.get("/jobs", params={"limit": 20}).json()["jobs"]
    (job,) = [job for job in jobs if job["request"]["prompt"] == prompt]
    service.wait_for_job(job["id"], "cancelled")
