"""A fleet of real Ray processes: a Mac with two replicas beside the front door, and a machine of four bits that joins it.

One fleet for the whole file; every test leaves it whole.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect

from config.settings import ROOT
from tests import mflux_stand_in
from tests.api.dialects.test_fleet import PYTHON_EXAMPLE, node_runs
from tests.fleet_service import RunningFleet
from tests.frontend.conftest import OpenPage, browser, open_page
from tests.operations.documents import documents
from tests.pictures import file_of, gradient
from tests.service import STOP_SECONDS
from utils.fleet.ray_processes import private_folder

__all__ = ["browser", "open_page"]

HERE = ("first/cpu0", "first/cpu1")
ALL = (*HERE, "second/cpu0")
CURL_EXAMPLES = (
    """curl --fail -s -X POST http://localhost:11435/dashboard/api/settings \\
-H "Content-Type: application/json" \\
-d '{"image_generation": true}'""",
    """curl --fail -s -o mflux_output.png http://localhost:11435/api/generate-image \\
-H "Content-Type: application/json" \\
-d '{
"model": "z-image-turbo",
"prompt": "a neon-lit Tokyo alley at midnight, cyberpunk aesthetic",
"width": 1024,
"height": 1024,
"steps": 4,
"quantize": 8
}'""",
    """curl --fail -s -o mflux_output.png http://localhost:11435/api/generate-image \\
-H "Content-Type: application/json" \\
-d '{
"model": "z-image-turbo",
"prompt": "your prompt for mflux image generation",
"metadata": {"tags": ["mflux-project", "mflux-content-gen"]}
}'""",
    "curl -s http://localhost:11435/dashboard/api/image-stats | python3 -m json.tool > stats",
    "curl -s http://localhost:11435/dashboard/api/health | python3 -m json.tool > health",
)
SIZE = {"width": 128, "height": 128, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    mflux_stand_in.install(folder / "bin")
    running = RunningFleet(
        folder,
        TEST_ANYWHERE="1",
        TEST_MAC="first",
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
        FLUX_MAX_QUEUE_SIZE="50",
    )
    running.start()
    try:
        running.join("second", precision="fp4")
        running.wait_for(*ALL)
        yield running
    finally:
        running.close()


def processes_of(fleet: RunningFleet) -> list[psutil.Process]:
    """What runs for a fleet: all of Ray's is told its port or its folder."""
    ours = {str(fleet.fleet_port), private_folder(fleet.folder / "data" / "fleet").name}
    found = psutil.process_iter(["name", "cmdline"])
    return [p for p in found if any(word in str(p.info["cmdline"]) for word in ours)]


def assert_nothing_left(fleet: RunningFleet) -> None:
    assert [process.info for process in processes_of(fleet)] == []
    assert not private_folder(fleet.folder / "data" / "fleet").exists()


@pytest.fixture
def whole(fleet: RunningFleet) -> Iterator[RunningFleet]:
    """The fleet with all of its replicas, before and after."""
    fleet.wait_for(*ALL)
    yield fleet
    for job_id in fleet.client.get("/queue").json()["running"]:
        # Of a test that failed: the next ones want the replica.
        fleet.client.post(f"/jobs/{job_id}/cancel").raise_for_status()
    fleet.wait_for(*ALL)


def holding(fleet: RunningFleet, name: str) -> dict:
    """A job that runs until its file is there, when its replica has it: that is written down a moment before."""
    job_id = fleet.submit(f"hold {name}", seed=7)
    fleet.wait_until(lambda: (fleet.job(job_id)["progress"] or {}).get("step"))
    return fleet.job(job_id)


def replica_pid(fleet: RunningFleet, name: str) -> int:
    return next(worker["pid"] for worker in fleet.workers() if worker["name"] == name)


def test_picture_is_drawn_and_the_answer_names_its_machine(whole: RunningFleet) -> None:
    answer = whole.client.post("/generate?format=raw", json={"prompt": "a cat", **SIZE, "seed": 3})
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"\x89PNG")
    assert answer.headers["X-Fleet-Node"] in ("first", "second")
    assert answer.headers["X-Fleet-Retries"] == "0"
    image = whole.client.get(f"/jobs/{answer.headers['X-Job-Id']}/image")
    told = [name for name in answer.headers if name.startswith("x-fleet-")]
    assert len(told) == 3
    assert {name: image.headers[name] for name in told} == {
        name: answer.headers[name] for name in told
    }


def test_same_request_has_the_same_bytes_on_every_replica(whole: RunningFleet) -> None:
    names = [f"same-{index}" for index in range(len(ALL))]
    held = [holding(whole, name) for name in names]
    assert {job["gpu"] for job in held} == set(ALL)  # so each has one
    for name in names:
        whole.release(name)
    pictures = set()
    for job in held:
        whole.wait_for_job(job["id"], "succeeded")
        pictures.add(whole.client.get(f"/jobs/{job['id']}/image").content[-2000:])
    assert len(held) == 3 and len({job["request"]["seed"] for job in held}) == 1


@pytest.mark.parametrize(("precision", "node"), [("bf16", "first"), ("fp4", "second")])
def test_precision_of_a_request_decides_its_machine(
    whole: RunningFleet, precision: str, node: str
) -> None:
    answer = whole.generate(precision=precision, **SIZE)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["precision"], answer.headers["X-Fleet-Node"]) == (precision, node)


def test_job_of_a_precision_waits_for_it_beside_idle_replicas_of_another(
    whole: RunningFleet,
) -> None:
    held = whole.wait_for_job(whole.submit("hold four bits", precision="fp4"), "running")
    waiting = whole.submit("a cat", precision="fp4", **SIZE)
    other = whole.wait_for_job(whole.submit("a cat", **SIZE))
    assert (held["gpu"], whole.job(waiting)["status"]) == ("second/cpu0", "queued")
    assert other["node"] == "first"
    whole.release("four bits")
    done = whole.wait_for_job(waiting)
    assert (done["node"], done["result"]["precision"]) == ("second", "fp4")


def test_job_of_mflux_goes_to_a_machine_that_has_its_commands(whole: RunningFleet) -> None:
    held = [
        whole.wait_for_job(whole.submit(f"hold mac-{index}", precision="bf16"), "running")
        for index in range(2)
    ]
    big = {"width": 256, "height": 256, "num_inference_steps": 2}
    waiting = whole.submit("a cat", backend="mflux", **big)
    assert whole.job(waiting)["status"] == "queued" and {job["node"] for job in held} == {"first"}
    for index in range(2):
        whole.release(f"mac-{index}")
    done = whole.wait_for_job(waiting)
    assert done["status"] == "succeeded", done["error"]
    assert (done["node"], done["result"]["engine"]) == ("first", "mflux")


def test_models_tell_the_precisions_that_a_request_may_name(whole: RunningFleet) -> None:
    models = {model["id"]: model for model in whole.client.get("/api/models").json()["models"]}
    assert models["embedded"]["precisions"] == ["bf16", "fp4"]
    assert models["mflux-schnell"]["precisions"] == ["bf16"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"precision": "fp2"}, "there is no precision 'fp2'; there is: bf16, fp4"),
        ({"model": "mflux-schnell", "precision": "fp4"}, "mflux-schnell has no FP4 weights"),
        ({"model": "flux-2-pro", "precision": "fp4"}, "BFL's cloud, which has none to choose"),
    ],
)
def test_precision_that_cannot_be_is_refused_by_name(
    whole: RunningFleet, body: dict, words: str
) -> None:
    answer = whole.generate(**body)
    assert answer.status_code == 400, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == "precision" and words in error["message"]


def paused(fleet: RunningFleet, *bodies: dict) -> list[str]:
    """Jobs that were all in line before the first began."""
    fleet.client.post("/queue/pause")
    ids = [fleet.submit(**body) for body in bodies]
    fleet.client.post("/queue/resume")
    return ids


def bits(fleet: RunningFleet, job_id: str, index: int = 0) -> bytes:
    """The pixels of a picture, without what it says of itself."""
    data = fleet.client.get(f"/jobs/{job_id}/image?index={index}").content
    return Image.open(io.BytesIO(data)).tobytes()


def test_jobs_that_agree_are_drawn_together_with_the_bytes_they_have_alone(
    whole: RunningFleet,
) -> None:
    alike = {"precision": "fp4", "width": 144, "height": 128, "num_inference_steps": 2}
    alone = [
        whole.wait_for_job(whole.submit("a cat", seed=seed, **alike))["id"] for seed in range(3)
    ]
    first = {"prompt": "hold together", "seed": 9, **alike}
    cats = [{"prompt": "a cat", "seed": seed, **alike} for seed in range(3)]
    ids = paused(whole, first, *cats)
    whole.wait_until(lambda: [whole.job(id)["status"] for id in ids] == ["running"] * 4)
    whole.release("together")
    ended = [whole.wait_for_job(job_id) for job_id in ids]
    assert {(job["status"], job["gpu"]) for job in ended} == {("succeeded", "second/cpu0")}
    assert [bits(whole, id) for id in ids[1:]] == [bits(whole, id) for id in alone]


def test_job_that_is_cancelled_leaves_those_it_is_drawn_with(whole: RunningFleet) -> None:
    alike = {"precision": "fp4", "width": 160, "height": 128, "num_inference_steps": 2}
    whole.wait_for_job(whole.submit("a cat", **alike))
    held, *cats = paused(
        whole, {"prompt": "hold beside", **alike}, *[{"prompt": "a cat", **alike}] * 2
    )
    whole.wait_until(lambda: all(whole.job(id)["status"] == "running" for id in (held, *cats)))
    assert whole.client.post(f"/jobs/{cats[0]}/cancel").json()["cancelled"] is True
    whole.release("beside")
    statuses = [whole.wait_for_job(job_id)["status"] for job_id in (held, *cats)]
    assert statuses == ["succeeded", "cancelled", "succeeded"]
    assert {name.rpartition("-")[0] for name in whole.files()} & {held, *cats} == {held, cats[1]}


def test_jobs_that_are_drawn_together_are_tried_alone_after_their_worker_died(
    whole: RunningFleet,
) -> None:
    alike = {"precision": "fp4", "width": 176, "height": 128, "num_inference_steps": 2}
    whole.wait_for_job(whole.submit("a cat", **alike))
    ids = paused(
        whole, {"prompt": "kill-once of-many", **alike}, *[{"prompt": "a cat", **alike}] * 2
    )
    ended = [whole.wait_for_job(job_id) for job_id in ids]
    assert {job["status"] for job in ended} == {"succeeded"}


def test_pictures_of_one_job_are_drawn_together(whole: RunningFleet) -> None:
    done = whole.wait_for_job(whole.submit("a cat", seed=0, num_images=4, **SIZE))
    assert [image["seed"] for image in done["result"]["images"]] == [0, 1, 2, 3]
    drawn = [bits(whole, done["id"], index) for index in range(4)]
    single = whole.wait_for_job(whole.submit("a cat", seed=2, **SIZE))
    assert len(set(drawn)) == 4 and drawn[2] == bits(whole, single["id"])


def test_cancelled_job_leaves_its_replica(whole: RunningFleet) -> None:
    job = holding(whole, "never-cancel")
    assert whole.client.post(f"/jobs/{job['id']}/cancel").json()["cancelled"] is True
    whole.wait_for(*ALL)
    assert whole.job(job["id"])["status"] == "cancelled"
    assert whole.files() == {name for name in whole.files() if job["id"] not in name}


def test_killed_replica_its_job_is_drawn_elsewhere_with_the_same_seed(whole: RunningFleet) -> None:
    job = holding(whole, "replica")
    os.kill(replica_pid(whole, job["gpu"]), signal.SIGKILL)
    whole.wait_until(lambda: whole.job(job["id"])["attempts"] == 2)
    whole.release("replica")
    done = whole.wait_for_job(job["id"])
    assert done["status"] == "succeeded"
    assert done["gpu"] != job["gpu"] and done["request"]["seed"] == job["request"]["seed"] == 7


def test_killed_worker_process_its_job_is_drawn_by_another_replica(whole: RunningFleet) -> None:
    job_id = whole.submit("kill-once worker-process", seed=7)
    done = whole.wait_for_job(job_id)
    assert (done["status"], done["attempts"]) == ("succeeded", 2)


def test_job_that_ends_two_workers_is_poison(whole: RunningFleet) -> None:
    done = whole.wait_for_job(whole.submit("kill always"))
    assert (done["status"], done["error"]["code"], done["attempts"]) == ("failed", "poison", 2)


def test_killed_machine_its_job_is_drawn_elsewhere(whole: RunningFleet) -> None:
    names = [f"machine-{index}" for index in range(len(ALL))]
    held = {job["gpu"]: job for job in (holding(whole, name) for name in names)}
    there = held["second/cpu0"]
    whole.kill_machine("second")
    whole.wait_until(lambda: "second/cpu0" not in whole.states())
    for name in names:
        whole.release(name)
    for job in held.values():
        assert whole.wait_for_job(job["id"])["status"] == "succeeded"
    assert whole.job(there["id"])["attempts"] == 2
    whole.join("second", precision="fp4")


def test_input_picture_reaches_a_machine_that_shares_no_folder(whole: RunningFleet) -> None:
    names = [f"input-{index}" for index in range(2)]
    held = [holding(whole, name) for name in names]
    picture = base64.b64encode(file_of(gradient(128, 128))).decode()
    done = whole.wait_for_job(whole.submit("a cat", image=picture, strength=0.5))
    assert done["status"] == "succeeded", done
    for name in names:
        whole.release(name)
    assert {job["gpu"] for job in [*held, done]} == set(ALL)


def test_drained_machine_begins_nothing_until_it_is_taken_back(whole: RunningFleet) -> None:
    command = next(
        block.text
        for document in documents()
        for block in document.blocks()
        if document.name == "docs/fleet.md" and "api/drain" in block.text
    )
    said = command.replace("8002", str(whole.port)).replace("studio", "second")
    subprocess.run(["bash", "-ec", said], check=True, timeout=180)
    try:
        names = [f"drain-{index}" for index in range(2)]
        held = [holding(whole, name) for name in names]
        waiting = whole.submit("a cat", **SIZE)
        fleet = whole.client.get("/dashboard/api/fleet").json()
        second = next(node for node in fleet["nodes"] if node["node_id"] == "second")
        assert (second["is_draining"], second["is_drained"]) == (True, True)
        assert {job["gpu"] for job in held} == set(HERE)
        assert whole.job(waiting)["status"] == "queued"
    finally:
        body = {"node": "second", "drain": False}
        assert whole.client.post("/dashboard/api/drain", json=body).status_code == 200
    assert whole.wait_for_job(waiting)["gpu"] == "second/cpu0"
    for name in names:
        whole.release(name)
    for job in held:
        whole.wait_for_job(job["id"], "succeeded")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "GET /dashboard/api/fleet lists"),
        ({"node": "third"}, 404, "there is: first, second"),
        ({"node": "second", "drain": "yes"}, 400, "must be true or false"),
    ],
)
def test_drain_of_what_is_not_there_is_refused(
    whole: RunningFleet, body: dict, status: int, words: str
) -> None:
    answer = whole.client.post("/dashboard/api/drain", json=body)
    assert answer.status_code == status and words in answer.json()["error"]


def test_dashboard_tells_of_every_machine(whole: RunningFleet) -> None:
    generated = whole.client.post(
        "/generate", json={"prompt": "a cat", **SIZE, "metadata": {"tags": ["of-a-fleet"]}}
    )
    assert generated.status_code == 200
    stats = whole.client.get("/dashboard/api/image-stats").json()
    assert stats["by_tag"]["of-a-fleet"] == 1
    assert set(stats["by_node"]) <= {"first", "second"}
    assert sum(stats["by_node"].values()) == stats["total"]
    settings = whole.client.get("/dashboard/api/settings").json()
    assert {node["node_id"] for node in settings["nodes"]} == {"first", "second"}
    assert whole.client.get("/dashboard/api/health").json()["vitals"]["nodes_online"] == 2
    answer = whole.client.get("/dashboard")
    assert answer.headers["Location"] == "/ui/dashboard.html"
    assert whole.client.get("/ui/dashboard.html").status_code == 200


def test_dashboard_page_shows_a_fleet_and_changes_it(
    whole: RunningFleet, open_page: OpenPage
) -> None:
    tag = "<b>of-a-page</b>"
    assert whole.generate(metadata={"tags": [tag]}, precision="fp4", **SIZE).status_code == 200
    page = open_page(f"{whole.url}/dashboard", origins=(whole.url,), color_scheme="dark")
    first, second = (page.locator("#nodes .card", has_text=name) for name in ("first", "second"))
    expect(first.locator("li")).to_have_count(2)
    expect(first).to_contain_text("BF16 + mflux")
    expect(second).to_contain_text("cpu0 · FP4 · idle")
    expect(second).to_contain_text("embedded · ")
    expect(page.locator("#day")).to_contain_text(f"{tag}: 1")
    expect(page.locator("#recent tr").first).to_contain_text(tag)
    expect(page.locator("#decisions")).to_contain_text("embedded → second: idle")

    def is_on() -> bool:
        return whole.client.get("/dashboard/api/settings").json()["image_generation"]

    switch = page.get_by_label("Image generation")
    switch.click()
    whole.wait_until(lambda: not is_on())
    body = {"model": "embedded", "prompt": "a cat"}
    assert whole.client.post("/api/generate-image", json=body).status_code == 503
    switch.click()
    whole.wait_until(is_on)

    page.get_by_role("button", name="Drain: second").click()
    expect(second.locator(".drained")).to_have_text("Drained")
    waiting = whole.submit("a cat", precision="fp4", **SIZE)
    expect(page.locator("#figures div", has_text="Waiting")).to_contain_text("1")
    page.get_by_role("button", name="Take part again: second").click()
    assert whole.wait_for_job(waiting)["status"] == "succeeded"
    expect(second.locator(".drained")).to_be_empty()


def test_clients_of_a_fleet_router_run_unchanged(whole: RunningFleet, tmp_path: Path) -> None:
    namespace: dict = {"httpx": httpx2}
    exec(PYTHON_EXAMPLE.replace("11435", str(whole.port)), namespace)
    path = tmp_path / "out.png"
    namespace["mflux_generate_image"]("an alley", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    call = 'process.stdout.write((await mfluxGenerateImage("an alley")).subarray(1, 4).toString());'
    assert node_runs(whole, call).stdout == "PNG"
    before = whole.client.get("/dashboard/api/image-stats").json()["by_tag"].get("mflux-project", 0)
    for example in CURL_EXAMPLES:
        (tmp_path / "mflux_output.png").unlink(missing_ok=True)
        said = example.replace("11435", str(whole.port))
        subprocess.run(["bash", "-ec", said], cwd=tmp_path, check=True, timeout=180)
        drawn = "generate-image" in example
        assert (tmp_path / "mflux_output.png").exists() is drawn
        if drawn:
            assert (tmp_path / "mflux_output.png").read_bytes().startswith(b"\x89PNG")
    stats = json.loads((tmp_path / "stats").read_text())
    assert stats["by_tag"]["mflux-project"] == before + 1
    assert json.loads((tmp_path / "health").read_text())["status"] == "healthy"


@pytest.fixture(scope="module")
def neighbour(fleet: RunningFleet) -> Iterator[subprocess.Popen[str]]:
    """Another application in the cluster, in a process of its own."""
    environ = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(fleet.folder / "data" / "fleet" / "token"),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fleet_neighbour", f"127.0.0.1:{fleet.fleet_port}"],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def says(process: subprocess.Popen[str], *words: str) -> str:
    """The next line that begins with one of these; Ray may tell of what has died before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(words):
            return line.strip()
    raise AssertionError(f"it ended and did not say {words}")


def goes_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def places_of(fleet: RunningFleet, precision: str) -> list[int]:
    """How many replicas could be, when the front door last looked."""
    said = re.findall(rf"the fleet has (\d+) places for {precision}", fleet.log_path.read_text())
    return [int(places) for places in said[-1:]]


def test_call_that_names_no_replica_goes_to_the_best_by_their_reports(
    whole: RunningFleet, neighbour: subprocess.Popen[str]
) -> None:
    assert says(neighbour, "taken", "refused") == "taken PNG"


def test_job_that_ray_refuses_goes_back_into_the_line(
    whole: RunningFleet, neighbour: subprocess.Popen[str]
) -> None:
    """Ray's own limits: the replica's calls are taken, and as many wait as may wait."""
    # Not before Ray has missed a machine that was killed: then the front door deploys anew, with limits of its own.
    whole.wait_until(lambda: places_of(whole, "fp4") == [1])
    goes_on(neighbour)
    assert says(neighbour, "holds: ") == "holds: taken"

    def is_told(words: str) -> bool:
        return f"job goes back: second/cpu0: {words}" in whole.log_path.read_text()

    first = whole.submit("a cat", precision="fp4", **SIZE)
    whole.wait_until(lambda: is_told("it took no call"))
    whole.wait_for_job(first, "running")  # its call waits in Ray, and after it the word of its end:
    job_id = whole.submit("a cat", precision="fp4", **SIZE)
    assert whole.client.post(f"/jobs/{first}/cancel").json()["cancelled"] is True
    whole.wait_until(lambda: is_told("Request dropped due to backpressure"))  # one too many
    with ThreadPoolExecutor() as pool:
        answered = pool.submit(whole.generate, precision="fp4", **SIZE)
        goes_on(neighbour)
        whole.release("neighbour")
        assert says(neighbour, "held: ") == "held: 1"
        done = whole.wait_for_job(job_id)
        assert (done["status"], done["attempts"], done["node"]) == ("succeeded", 1, "second")
        answer = answered.result()
    assert (answer.status_code, answer.headers["X-Fleet-Retries"]) == (200, "0")


def test_machine_with_a_wrong_token_does_not_join(whole: RunningFleet, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "utils.fleet.join", f"127.0.0.1:{whole.fleet_port}"],
        cwd=ROOT,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("FLUX_")},
            "FLUX_DATA_DIR": str(tmp_path),
            "FLUX_FLEET_NODE": "stranger",
            "FLUX_FLEET_TOKEN": "0" * 64,
            "FLUX_FAKE_GPUS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 78
    assert "has another token than this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(whole.states()) == set(ALL)


def test_full_queue_is_429(whole: RunningFleet) -> None:
    whole.client.post("/queue/pause")
    try:
        answers = [whole.client.post("/jobs", json={"prompt": "a cat", **SIZE}) for _ in range(51)]
        assert [answer.status_code for answer in answers] == [202] * 50 + [429]
        assert answers[-1].json()["code"] == "queue_full" and answers[-1].headers["Retry-After"]
    finally:
        whole.client.post("/queue/clear")
        whole.client.post("/queue/resume")


def awake(fleet: RunningFleet) -> list[dict]:
    nodes = fleet.client.get("/dashboard/api/fleet").json()["nodes"]
    replicas = [each for node in nodes for each in node["replicas"]]
    assert {each["name"] for each in replicas} <= set(ALL)
    return [each for each in replicas if not each["is_asleep"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """The jobs that ran, waited, and came at once after the next start, at their end; who the replicas were."""

    jobs: list[dict]
    pids: dict[str, int]


@pytest.fixture(scope="module")
def killed(fleet: RunningFleet) -> Killed:
    """The front door was killed, and its next start has limits: from here on replicas sleep."""
    fleet.wait_for(*ALL)
    pids = pids_of(fleet)
    names = [f"door-{index}" for index in range(len(ALL))]
    ids = [holding(fleet, name)["id"] for name in names]
    ids += [fleet.submit(f"a cat {index}", **SIZE) for index in range(5)]
    fleet.kill_front_door()
    for name in names:
        fleet.release(name)
    limits = {"MIN_REPLICAS": "1", "MAX_REPLICAS": "2", "IDLE_SECONDS": "1"}
    fleet.set(**{f"FLUX_FLEET_{name}": value for name, value in limits.items()})
    fleet.start()
    ids.append(fleet.submit("a cat at once", **SIZE))  # before any replica is there again
    return Killed(jobs=[fleet.wait_for_job(job_id) for job_id in ids], pids=pids)


def pids_of(fleet: RunningFleet) -> dict[str, int]:
    return {worker["name"]: worker["pid"] for worker in fleet.workers()}


def test_killed_front_door_every_job_ends_once_and_replicas_stay(
    fleet: RunningFleet, killed: Killed
) -> None:
    assert {job["status"] for job in killed.jobs} == {"succeeded"}
    assert {job["attempts"] for job in killed.jobs} == {1}
    fleet.wait_until(lambda: pids_of(fleet) == killed.pids)
    staged = [name for name in fleet.files() if name.startswith(".staging")]
    assert not staged
    assert all(f"{job['id']}-0.png" in fleet.files() for job in killed.jobs)


def test_replicas_sleep_and_wake_by_what_waits(fleet: RunningFleet, killed: Killed) -> None:
    pids = killed.pids
    fleet.wait_until(lambda: set(fleet.states()) == set(ALL) and len(awake(fleet)) == 1)

    def workers() -> int:
        found = psutil.process_iter(["ppid", "cmdline"])
        ours = [p for p in found if p.info["ppid"] in pids.values()]
        return sum("utils.worker.child" in (p.info["cmdline"] or ()) for p in ours)

    fleet.wait_until(lambda: workers() == 1, what="keeps the memory of those that sleep")
    held = [fleet.submit("hold wide") for _ in range(8)]

    def at_work() -> set[str]:
        jobs = [fleet.job(job_id) for job_id in held]
        return {job["gpu"] for job in jobs if job["status"] == "running"}

    fleet.wait_until(lambda: len(at_work()) == 2)
    fleet.wait_until(lambda: len(awake(fleet)) == 2 and workers() == 2)
    fleet.release("wide")
    assert {fleet.wait_for_job(job_id)["status"] for job_id in held} == {"succeeded"}
    sleeper = max({*ALL} - {each["name"] for each in awake(fleet)})  # two may sleep again by now
    only = "fp4" if sleeper.startswith("second") else "bf16"
    done = fleet.wait_for_job(fleet.submit("a cat", precision=only, **SIZE))
    assert (done["status"], done["result"]["precision"]) == ("succeeded", only)
    fleet.wait_until(lambda: len(awake(fleet)) == 1)
    assert pids_of(fleet) == pids


def test_machine_that_is_told_to_leave_leaves_nothing(fleet: RunningFleet) -> None:
    assert fleet.leave("second") == 0
    fleet.wait_until(lambda: set(fleet.states()) == set(HERE))
    assert not private_folder(fleet.folder / "second" / "data" / "fleet").exists()


def test_front_door_without_ray_says_so_and_ends_for_another_start(fleet: RunningFleet) -> None:
    """The fleet is gone after this."""
    token = fleet.token
    assert len(token) == 64 and token not in fleet.log_path.read_text()
    mode = (fleet.folder / "data" / "fleet" / "token").stat().st_mode
    assert mode & 0o077 == 0
    job_id = fleet.wait_for_job(fleet.submit("hold on"), "running")["id"]
    (gcs,) = [p for p in processes_of(fleet) if p.info["name"] == "gcs_server"]
    gcs.kill()
    assert fleet.process.wait(STOP_SECONDS) == 75
    assert "Ray's processes on this machine have ended" in fleet.log_path.read_text()
    assert f"job_id={job_id}" in fleet.log_path.read_text().rpartition("job goes back")[2]
    assert_nothing_left(fleet)


def test_stop_while_a_fleet_starts_leaves_nothing(fleet: RunningFleet) -> None:
    """Last in the file: right after it has ended by itself."""
    fleet.start(wait=False)
    fleet.wait_until((fleet.folder / "data" / "fleet" / "head.json").exists)
    assert fleet.stop() == 0
    assert_nothing_left(fleet)
