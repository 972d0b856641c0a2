"""The service on a real NVIDIA GPU, with the embedded model. Run with `pytest -m gpu`."""

import io
import os
import signal

import pytest
from PIL import Image, ImageChops

from utils import gpu_manager

pytestmark = pytest.mark.gpu

GPUS, WHY_NONE = gpu_manager.list_gpus()

if not GPUS:
    pytest.skip(f"needs an NVIDIA GPU: {WHY_NONE}", allow_module_level=True)

# The embedded model on a GPU; by itself a GPU machine would take flux-schnell.
ON_GPU = {"FLUX_GPUS": "0", "FLUX_MODEL": "embedded"}


def raw(service, **body) -> bytes:
    answer = service.client.post("/generate?format=raw", json={"prompt": "a red balloon", **body})
    assert answer.status_code == 200, answer.text
    return answer.content


def test_worker_is_pinned_to_the_gpu_that_was_asked_for(start_service):
    service = start_service(**ON_GPU)
    (worker,) = service.workers()
    environ = open(f"/proc/{worker['pid']}/environ", "rb").read().split(b"\0")
    assert f"CUDA_VISIBLE_DEVICES={GPUS[0].uuid}".encode() in environ
    assert worker["device"] == GPUS[0].name


def test_same_seed_gives_equal_bytes_on_the_gpu(start_service):
    service = start_service(**ON_GPU)
    assert raw(service, seed=11) == raw(service, seed=11)


def test_gpu_and_cpu_draw_the_same_picture_from_a_seed(start_service):
    on_gpu = raw(start_service(**ON_GPU), seed=12)
    on_cpu = raw(start_service(), seed=12)
    difference = ImageChops.difference(
        Image.open(io.BytesIO(on_gpu)).convert("RGB"), Image.open(io.BytesIO(on_cpu)).convert("RGB")
    )
    mean = sum(sum(band.getdata()) for band in difference.split()) / (3 * 256 * 256)
    assert mean < 4, "BF16 arithmetic moves pixels a little, not the scene"


def test_unload_gives_the_memory_back(start_service):
    service = start_service(**ON_GPU)
    raw(service, seed=1)
    loaded = service.workers()[0]["memory_mib"]  # told after loading, before the first product
    assert service.client.post("/unload-model").json()["unloaded"]
    assert service.workers()[0]["memory_mib"] < loaded / 2
    raw(service, seed=1)


def test_gpu_info_reads_memory_and_load(start_service):
    service = start_service(**ON_GPU)
    gpu = service.client.get("/gpu-info").json()["gpus"][0]
    assert 0 < gpu["memory_used_mib"] < gpu["memory_total_mib"]
    assert gpu["worker"] == "gpu0"


def test_killed_worker_is_replaced_on_the_same_gpu(start_service):
    service = start_service(**ON_GPU)
    before = raw(service, seed=5)
    old = service.workers()[0]["pid"]
    os.kill(old, signal.SIGKILL)
    service.wait_until(lambda: service.workers()[0]["pid"] not in (old, None))
    service.wait_for_workers()
    assert raw(service, seed=5) == before


def test_default_model_on_a_gpu_is_flux_schnell(start_service):
    service = start_service(FLUX_GPUS="auto")
    info = service.client.get("/info").json()
    assert info["default_model"] == "flux-schnell"
    assert GPUS[0].name in info["default_model_reason"]
