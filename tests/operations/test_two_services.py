"""Both services on one machine, in the same folders: each has its own port, queue and GPU.

On a stand-in model. That each draws with its own weights is seen where both draw: in the README's test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from models.precision import known_precisions, profile_of
from tests.service import ENGINE_MAIN, START_SECONDS, RunningService

pytestmark = pytest.mark.skipif(
    profile_of("fp4").loader is None, reason=f"no FP4 loader: {profile_of('fp4').not_built}"
)

# In place of nvidia-ml-py: two cards. torch sees none, so the workers compute on the CPU; where they
# are pinned to is seen all the same.
NVML = """
from types import SimpleNamespace
class NVMLError(Exception):
    pass
NVML_TEMPERATURE_GPU = 0
UUIDS = ["GPU-aaaa", "GPU-bbbb"]
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: len(UUIDS)
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetHandleByUUID = UUIDS.index
nvmlDeviceGetUUID = lambda handle: UUIDS[handle]
nvmlDeviceGetName = lambda handle: f"Card {handle}"
nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=2**35, used=0, free=2**35)
nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=0)
nvmlDeviceGetTemperature = lambda handle, sensor: 40
nvmlDeviceGetPowerUsage = lambda handle: 1000
"""
GPUS = {"bf16": ("0", "GPU-aaaa"), "fp4": ("1", "GPU-bbbb")}


class Pair:
    """The two services over common folders, each on a GPU of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pynvml.py").write_text(NVML)
        self.running = {name: self._service(name) for name in GPUS}
        for service in self.running.values():
            service.start(wait=False)
        for service in self.running.values():
            service.wait_until(service._answers, START_SECONDS, "did not answer")
            service.wait_for_workers()

    def _service(self, precision: str) -> RunningService:
        return RunningService(
            self.folder / precision,
            main=ENGINE_MAIN,
            TEST_ENGINE="scripted",
            TEST_PRECISION=precision,
            PYTHONPATH=str(self.folder),
            FLUX_GPUS=GPUS[precision][0],
            FLUX_MODEL="embedded",
            FLUX_DATA_DIR=str(self.folder / "data"),
            FLUX_OUTPUT_DIR=str(self.folder / "generated_images"),
            FLUX_MODELS_DIR=str(self.folder / "models"),
        )

    def __getitem__(self, precision: str) -> RunningService:
        return self.running[precision]

    def close(self) -> None:
        for service in self.running.values():
            service.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    both = Pair(tmp_path_factory.mktemp("pair"))
    try:
        yield both
    finally:
        both.close()


def picture(service: RunningService, seed: int) -> httpx2.Response:
    return service.client.post(
        "/generate?format=raw",
        json={"prompt": "a red balloon", "width": 128, "height": 128, "steps": 2, "seed": seed},
    )


def both_at_once(pair: Pair, ask: Callable[[RunningService], object]) -> dict[str, object]:
    with ThreadPoolExecutor(len(pair.running)) as pool:
        asked = {name: pool.submit(ask, service) for name, service in pair.running.items()}
        return {name: future.result() for name, future in asked.items()}


def test_there_is_a_gpu_for_each_precision() -> None:
    assert set(GPUS) == set(known_precisions())


def test_each_has_its_own_port_name_and_workers(pair: Pair) -> None:
    infos = both_at_once(pair, lambda service: service.client.get("/info").json())
    assert {name: info["service"] for name, info in infos.items()} == {
        name: f"flux-api-{name}" for name in GPUS
    }
    assert pair["bf16"].port != pair["fp4"].port
    pids = [worker["pid"] for service in pair.running.values() for worker in service.workers()]
    assert len(set(pids)) == len(pids) == 2


@pytest.mark.parametrize("precision", GPUS)
def test_each_worker_is_pinned_to_its_gpu(pair: Pair, precision: str) -> None:
    (worker,) = pair[precision].workers()
    environ = psutil.Process(worker["pid"]).environ()
    assert environ["CUDA_VISIBLE_DEVICES"] == GPUS[precision][1]


def test_each_has_its_own_queue_in_its_own_database(pair: Pair) -> None:
    ids = {name: service.submit("a blue house", steps=1) for name, service in pair.running.items()}
    databases = {path.stem for path in (pair.folder / "data").glob("*.sqlite3")}
    assert databases - {"keys"} == set(GPUS), "keys are the machine's"
    for name, service in pair.running.items():
        assert service.wait_for_job(ids[name])["status"] == "succeeded"
        written = b"".join(
            path.read_bytes() for path in (pair.folder / "data").glob(f"{name}.sqlite3*")
        )
        listed = {job["id"] for job in service.client.get("/jobs").json()["jobs"]}
        for owner, job_id in ids.items():
            assert (job_id in listed) == (owner == name)
            assert (job_id.encode() in written) == (owner == name)
            status = service.client.get(f"/jobs/{job_id}").status_code
            assert status == (200 if owner == name else 404)


@pytest.mark.parametrize("dying", GPUS)
def test_one_that_is_killed_leaves_the_other_serving_and_comes_back(pair: Pair, dying: str) -> None:
    (other,) = (service for name, service in pair.running.items() if name != dying)
    pids = [worker["pid"] for worker in other.workers()]
    waiting = pair[dying].submit("a white star", steps=4)
    pair[dying].kill()

    assert picture(other, seed=9).status_code == 200
    assert other.client.get("/health/ready").status_code == 200
    assert [worker["pid"] for worker in other.workers()] == pids
    with pytest.raises(httpx2.TransportError):
        pair[dying].client.get("/health/live")

    pair[dying].start()
    assert pair[dying].wait_for_job(waiting, seconds=60)["status"] == "succeeded"
    assert picture(other, seed=10).status_code == 200
