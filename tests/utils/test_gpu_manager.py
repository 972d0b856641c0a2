"""Which GPUs are used, with a driver that is made up: no card is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from config.catalog import Catalog, choose_default, load_catalog
from config.errors import ConfigurationError, InvalidRequest, UnsupportedHardware
from config.settings import ModelSettings, Settings, WorkerSettings, load_settings
from models.precision import profile_of
from utils import gpu_manager, requests
from utils.clock import Chance
from utils.gpu_manager import Gpu, WorkerSlot, list_gpus, place_workers, read_load
from utils.lora_manager import LoraManager
from utils.requests import RequestResolver, Wanted
from utils.worker.parent import child_environment

MIB = 2**20
H200_MIB = 143_771


class NVMLError(Exception):
    pass


class Driver:
    """What `pynvml` answers: the calls that the service makes, in memory."""

    NVML_TEMPERATURE_GPU = 0
    NVMLError = NVMLError

    def __init__(
        self, *names: str, memory_mib: int | list[int] = H200_MIB, answers: bool = True
    ) -> None:
        self._names = names
        self._memory_mib = memory_mib if isinstance(memory_mib, list) else [memory_mib] * len(names)
        self._answers = answers
        self.silent: set[str] = set()
        self.opened = 0

    def nvmlInit(self) -> None:
        if not self._answers:
            raise NVMLError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        for index in range(len(self._names)):
            if self.nvmlDeviceGetUUID(index) == uuid:
                return index
        raise NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{'abcdefgh'[handle]}000-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return self._names[handle].encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        total = self._memory_mib[handle] * MIB
        return SimpleNamespace(total=total, used=total // 4, free=total * 3 // 4)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._may_fail("utilization")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._may_fail("temperature")
        return 41

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._may_fail("power")
        return 99_500

    def _may_fail(self, what: str) -> None:
        if what in self.silent:
            raise NVMLError("Not Supported")


Install = Callable[..., Driver]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a driver in the place of `pynvml`."""

    def put(*names: str, **options: Any) -> Driver:
        driver = Driver(*names, **options)
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    return put


def slots(settings: WorkerSettings, **environ: str) -> list[tuple[str, str]]:
    """(name, CUDA_VISIBLE_DEVICES) of each worker."""
    placement = place_workers(settings, environ)
    return [(slot.name, slot.visible_devices) for slot in placement.slots]


def auto(**environ: str) -> list[str]:
    return [name for name, _ in slots(WorkerSettings(), **environ)]


# Placement


def test_place_auto_takes_every_gpu_by_uuid(install: Install) -> None:
    install("NVIDIA H200", "NVIDIA H200")
    assert slots(WorkerSettings()) == [("gpu0", "GPU-a000-0"), ("gpu1", "GPU-b000-1")]


def test_place_auto_names_the_cards(install: Install) -> None:
    install("NVIDIA H200", "NVIDIA L4")
    placement = place_workers(WorkerSettings(), {})
    assert placement.gpu_names == ("NVIDIA H200", "NVIDIA L4")
    assert placement.slots[0].gpus[0].memory_total_mib == H200_MIB


def test_place_split_makes_one_worker_of_all_gpus(install: Install) -> None:
    install("a", "b", "c")
    settings = WorkerSettings(gpus="2,0", gpu_mode="split")
    assert slots(settings) == [("gpu2+gpu0", "GPU-c000-2,GPU-a000-0")]
    assert place_workers(settings, {}).slots[0].devices == 2


def test_place_split_of_stand_ins_is_one_worker_on_as_many_devices() -> None:
    (slot,) = place_workers(WorkerSettings(fake_gpus=2, gpu_mode="split"), {}).slots
    assert (slot.name, slot.visible_devices, slot.devices) == ("cpu0+cpu1", "", 2)


def test_place_indices_take_those_in_their_order(install: Install) -> None:
    install("a", "b", "c")
    assert [name for name, _ in slots(WorkerSettings(gpus="2,0"))] == ["gpu2", "gpu0"]


@pytest.mark.parametrize(("gpus", "absent"), [("3", "3"), ("0,7", "7"), ("4,5", "4, 5")])
def test_place_absent_index_is_refused_by_name(install: Install, gpus: str, absent: str) -> None:
    install("NVIDIA H200", "NVIDIA L4")
    with pytest.raises(ConfigurationError) as caught:
        place_workers(WorkerSettings(gpus=gpus), {})
    assert f"GPU {absent} " in str(caught.value)
    assert "0 (NVIDIA H200), 1 (NVIDIA L4)" in str(caught.value)


def test_place_index_without_a_driver_is_refused_with_the_reason(install: Install) -> None:
    install(answers=False)
    with pytest.raises(ConfigurationError, match="Driver Not Loaded"):
        place_workers(WorkerSettings(gpus="0"), {})


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0", ["gpu0"]),
        ("1", ["gpu1"]),
        ("2,0", ["gpu2", "gpu0"]),
        (" 1 , 2 ", ["gpu1", "gpu2"]),
        ("GPU-b000-1", ["gpu1"]),
        ("GPU-c", ["gpu2"]),
        ("GPU-c000-2,0", ["gpu2", "gpu0"]),
        ("0,-1,1", ["gpu0"]),
        ("0,9,1", ["gpu0"]),
        ("", ["cpu"]),
        ("-1", ["cpu"]),
        ("9", ["cpu"]),
        ("GPU-z", ["cpu"]),
    ],
)
def test_place_auto_is_narrowed_by_cuda_visible_devices(
    install: Install, visible: str, names: list[str]
) -> None:
    install("a", "b", "c")
    assert auto(CUDA_VISIBLE_DEVICES=visible) == names


def test_place_auto_narrowed_to_one_card_twice_is_one_worker(install: Install) -> None:
    """Two workers on one card would halve its memory under one name."""
    install("a", "b")
    assert len(auto(CUDA_VISIBLE_DEVICES="0,0")) < 2


def test_place_auto_narrowed_to_nothing_says_why(install: Install) -> None:
    install("a")
    assert (
        "CUDA_VISIBLE_DEVICES"
        in place_workers(WorkerSettings(), {"CUDA_VISIBLE_DEVICES": ""}).why_no_gpu
    )


def test_place_indices_are_not_narrowed(install: Install) -> None:
    install("a", "b")
    placed = slots(WorkerSettings(gpus="1"), CUDA_VISIBLE_DEVICES="0")
    assert [name for name, _ in placed] == ["gpu1"]


@pytest.mark.parametrize("names", [(), ("a",)])
def test_place_none_is_the_cpu(install: Install, names: tuple[str, ...]) -> None:
    install(*names)
    placement = place_workers(WorkerSettings(gpus="none"), {})
    assert [(slot.name, slot.visible_devices) for slot in placement.slots] == [("cpu", "")]
    assert "FLUX_GPUS" in placement.why_no_gpu


def test_place_auto_without_a_driver_is_the_cpu_and_says_why(install: Install) -> None:
    install(answers=False)
    placement = place_workers(WorkerSettings(), {})
    assert [slot.name for slot in placement.slots] == ["cpu"]
    assert "Driver Not Loaded" in placement.why_no_gpu


def test_place_auto_without_the_library_is_the_cpu_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in place_workers(WorkerSettings(), {}).why_no_gpu


def test_place_auto_without_a_card_is_the_cpu_and_says_why(install: Install) -> None:
    install()
    assert "sees no GPU" in place_workers(WorkerSettings(), {}).why_no_gpu


def test_place_fake_gpus_are_cpu_workers(install: Install) -> None:
    install("a")
    assert slots(WorkerSettings(fake_gpus=2)) == [("cpu0", ""), ("cpu1", "")]


def test_driver_is_closed_after_every_look(install: Install) -> None:
    driver = install("a")
    gpus, why = list_gpus()
    read_load(gpus[0])
    assert why == "" and driver.opened == 0


# Load


def test_read_load_has_every_number(install: Install) -> None:
    install("a")
    assert read_load(list_gpus()[0][0]) == {
        "memory_used_mib": H200_MIB // 4,
        "memory_free_mib": H200_MIB * 3 // 4,
        "utilization_percent": 37,
        "temperature_c": 41,
        "power_w": 99.5,
    }


@pytest.mark.parametrize(
    ("what", "name"),
    [("utilization", "utilization_percent"), ("temperature", "temperature_c"), ("power", "power_w")],
)  # fmt: skip
def test_read_load_is_none_where_the_card_will_not_say(
    install: Install, what: str, name: str
) -> None:
    install("a").silent.add(what)
    load = read_load(list_gpus()[0][0])
    assert [key for key, value in load.items() if value is None] == [name]


def test_read_load_of_a_card_that_is_gone_is_an_error_in_words(install: Install) -> None:
    driver = install("a")
    gone = Gpu(index=5, uuid="GPU-x", name="x", memory_total_mib=1)
    assert "Not Found" in read_load(gone)["error"]
    assert driver.opened == 0


# A worker's environment


def test_child_environment_pins_the_card_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    gpu = Gpu(index=1, uuid="GPU-b000-1", name="b", memory_total_mib=1)
    environ = child_environment(WorkerSlot(name="gpu1", gpus=(gpu,)), load_settings("bf16", {}))
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-b000-1"
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_child_environment_of_a_cpu_worker_hides_every_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    environ = child_environment(WorkerSlot(name="cpu"), load_settings("bf16", {}))
    assert environ["CUDA_VISIBLE_DEVICES"] == ""


def test_child_environment_holds_no_setting_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_API_KEYS", "a-secret-of-the-service")
    environ = child_environment(WorkerSlot(name="cpu"), load_settings("bf16", {}))
    assert not [name for name in environ if name.startswith("FLUX_")]
    assert "a-secret-of-the-service" not in environ.values()
    assert "PATH" in environ


def test_child_environment_of_a_cpu_worker_keeps_freed_memory_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    settings = load_settings("bf16", {})
    environ = child_environment(WorkerSlot(name="cpu"), settings)
    assert int(environ["MALLOC_MMAP_THRESHOLD_"]) > 4 * 24 * 1024**2  # a layer of 1024 px
    assert environ["MALLOC_TRIM_THRESHOLD_"] == "1000"
    gpu = Gpu(index=1, uuid="GPU-b000-1", name="b", memory_total_mib=1)
    other = child_environment(WorkerSlot(name="gpu1", gpus=(gpu,)), settings)
    assert "MALLOC_MMAP_THRESHOLD_" not in other


def test_child_environment_has_threads_wait_briefly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    environ = child_environment(WorkerSlot(name="cpu"), load_settings("bf16", {}))
    assert (environ["OMP_WAIT_POLICY"], environ["GOMP_SPINCOUNT"]) == ("ACTIVE", "0")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    environ = child_environment(WorkerSlot(name="cpu"), load_settings("bf16", {}))
    # Without a bound, ACTIVE threads would never sleep.
    assert int(environ["GOMP_SPINCOUNT"]) <= 1000 and environ["KMP_BLOCKTIME"] == "0"


@pytest.mark.parametrize(("allowed", "offline"), [("true", None), ("false", "1")])
def test_child_environment_is_offline_when_downloads_are_off(
    monkeypatch: pytest.MonkeyPatch, allowed: str, offline: str | None
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    settings = load_settings("bf16", {"FLUX_ALLOW_DOWNLOAD": allowed})
    environ = child_environment(WorkerSlot(name="cpu"), settings)
    assert environ.get("HF_HUB_OFFLINE") == offline
    assert environ["DIFFUSERS_DISABLE_REMOTE_CODE"] == "1"


# What a model needs


def resolver(
    precision: str = "bf16", models: ModelSettings = ModelSettings()  # noqa: B008 - frozen
) -> RequestResolver:
    """Of a service on the cards that are installed."""
    catalog = load_catalog()
    placement = place_workers(WorkerSettings(), {})
    default = choose_default(catalog, "auto", placement.gpu_names, placement.why_no_gpu)
    profile, chance = profile_of(precision), Chance()
    loras = LoraManager(Settings(), profile, catalog, chance)
    return RequestResolver(catalog, default, profile, placement, chance, loras, models=models)


def test_model_that_fits_the_card_is_taken(install: Install) -> None:
    install("NVIDIA H200")
    request = resolver().resolve(Wanted(prompt="a", model="flux-schnell"))
    assert (request.model, request.width) == ("flux-schnell", 1024)


def test_model_default_with_a_card_is_schnell(install: Install) -> None:
    install("NVIDIA H200")
    assert resolver().resolve(Wanted(prompt="a")).model == "flux-schnell"


def test_model_that_fits_with_weights_in_main_memory_is_taken(install: Install) -> None:
    install("NVIDIA L4", memory_mib=23_034)
    assert resolver().resolve(Wanted(prompt="a", model="flux-schnell")).model == "flux-schnell"


def test_model_that_does_not_fit_the_card_is_refused_with_both_sizes(install: Install) -> None:
    install("NVIDIA T400", memory_mib=4_096)
    with pytest.raises(UnsupportedHardware, match=r"16 GiB.*NVIDIA T400 has 4.0 GiB.*embedded"):
        resolver().resolve(Wanted(prompt="a", model="flux-schnell"))


def test_model_default_on_a_small_card_can_be_drawn(install: Install) -> None:
    """A default that is refused for every request is no default."""
    install("NVIDIA T400", memory_mib=4_096)
    assert resolver().resolve(Wanted(prompt="a")).model == "embedded"


def test_model_that_one_of_two_cards_can_run_is_taken_and_given_to_that_one(
    install: Install,
) -> None:
    install("NVIDIA H200", "NVIDIA T400", memory_mib=[H200_MIB, 4_096])
    both = resolver()
    assert both.resolve(Wanted(prompt="a", model="flux-schnell")).model == "flux-schnell"
    large, small = place_workers(WorkerSettings(), {}).slots
    assert {"embedded", "flux-schnell", "flux-dev"} <= set(both.models_on(large))
    assert "embedded" in both.models_on(small) and "flux-schnell" not in both.models_on(small)


def test_model_spread_over_two_cards_needs_both_and_its_largest_part_on_the_last(
    install: Install,
) -> None:
    settings = WorkerSettings(gpu_mode="split")
    install("NVIDIA RTX 4000", "NVIDIA RTX 5090", memory_mib=[20_480, 32_607])
    (slot,) = place_workers(settings, {}).slots
    assert "flux-schnell" in resolver().models_on(slot)
    install("NVIDIA RTX 5090", "NVIDIA RTX 4000", memory_mib=[32_607, 20_480])
    (slot,) = place_workers(settings, {}).slots
    schnell = resolver().catalog["flux-schnell"]
    assert "NVIDIA RTX 4000 has 20.0 GiB" in (resolver().why_not_on(slot, schnell) or "")


def test_model_without_weights_of_this_precision_is_refused(install: Install) -> None:
    install("NVIDIA H200")
    other = resolver(precision="fp4")
    rows = {row.id: row for row in other.catalog}
    rows["bare"] = rows["embedded"].model_copy(update={"id": "bare", "memory_gib": {"bf16": 1.0}})
    other.catalog = Catalog(rows)
    with pytest.raises(UnsupportedHardware, match="no FP4 weights"):
        other.resolve(Wanted(prompt="a", model="bare"))


def test_model_of_another_backend_is_refused(install: Install) -> None:
    install("NVIDIA H200")
    other = resolver()
    rows = {row.id: row for row in other.catalog}
    rows["sd"] = rows["embedded"].model_copy(update={"id": "sd", "backend": "sd"})
    other.catalog = Catalog(rows)
    with pytest.raises(InvalidRequest, match="belongs to backend flux, not sd"):
        other.resolve(Wanted(prompt="a", model="embedded", backend="sd"))


# What draws


def apple(monkeypatch: pytest.MonkeyPatch, machine: str = "arm64", gib: float = 64) -> None:
    """As on a Mac."""
    monkeypatch.setattr(gpu_manager.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(gpu_manager.platform, "machine", lambda: machine)
    monkeypatch.setattr(requests.main_memory, "total_gib", lambda: gib)


def device(name: str, **more: Any) -> WorkerSettings:
    return WorkerSettings(device=name, **more)


def test_device_auto_takes_apples_gpu_where_there_is_no_other(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(answers=False)
    apple(monkeypatch)
    placement = place_workers(WorkerSettings(), {})
    assert [(slot.name, slot.kind) for slot in placement.slots] == [("mps", "mps")]
    assert "Apple's GPU" in placement.why_no_gpu


def test_device_auto_on_an_old_mac_is_the_cpu(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(answers=False)
    apple(monkeypatch, machine="x86_64")
    assert [slot.kind for slot in place_workers(WorkerSettings(), {}).slots] == ["cpu"]


def test_device_auto_prefers_nvidias(install: Install) -> None:
    install("NVIDIA H200")
    assert [slot.kind for slot in place_workers(WorkerSettings(), {}).slots] == ["cuda"]


def test_device_cpu_leaves_gpus_alone(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("NVIDIA H200")
    apple(monkeypatch)
    placement = place_workers(device("cpu"), {})
    assert [slot.kind for slot in placement.slots] == ["cpu"]
    assert placement.why_no_gpu == "FLUX_DEVICE is cpu"


def test_device_cuda_without_a_card_is_refused(install: Install) -> None:
    install(answers=False)
    with pytest.raises(ConfigurationError, match="FLUX_DEVICE is cuda.*Driver Not Loaded"):
        place_workers(device("cuda"), {})


def test_device_mps_elsewhere_than_on_apples_chips_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="FLUX_DEVICE is mps.*this is Linux on"):
        place_workers(device("mps"), {})


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_device_that_contradicts_the_gpus_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"FLUX_DEVICE is {name}.*GPU 0"):
        place_workers(device(name, gpus="0"), {})


def test_device_cuda_and_no_gpus_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="FLUX_DEVICE is cuda, and FLUX_GPUS is none"):
        place_workers(device("cuda", gpus="none"), {})


def test_device_by_the_name_of_other_programs() -> None:
    assert load_settings("bf16", {"SD_DEVICE": "cpu"}).worker.device == "cpu"


def test_model_on_apples_gpu_has_to_fit_its_part_of_the_memory(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(answers=False)
    apple(monkeypatch, gib=64)
    assert resolver().why_not_here(load_catalog()["flux-schnell"]) is None
    apple(monkeypatch, gib=32)
    reason = resolver().why_not_here(load_catalog()["flux-schnell"])
    assert "needs 34 GiB" in reason and "22 of this machine's 32 GiB" in reason
    assert resolver().why_not_here(load_catalog()["embedded"]) is None


def test_four_bit_weights_do_not_run_on_apples_gpu(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(answers=False)
    apple(monkeypatch)
    fp4 = resolver("fp4")
    assert "use the BF16 service" in fp4.why_not_here(load_catalog()["flux-schnell"])
    assert fp4.why_not_here(load_catalog()["embedded"]) is None


def test_model_over_the_budget_of_the_settings_is_refused_by_name(install: Install) -> None:
    install("NVIDIA H200")
    small = resolver(models=ModelSettings(model_memory_gib=10))
    reason = small.why_not_here(load_catalog()["flux-schnell"])
    assert "needs 16 GiB" in reason and "FLUX_MODEL_MEMORY_GIB allows 10" in reason


def test_model_that_may_not_wait_in_main_memory_needs_all_of_the_card(install: Install) -> None:
    install("NVIDIA L4", memory_mib=23_034)
    reason = resolver(models=ModelSettings(offload="off")).why_not_here(
        load_catalog()["flux-schnell"]
    )
    assert "needs 34 GiB" in reason


def test_model_larger_than_main_memory_is_refused_on_a_cpu(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(answers=False)
    monkeypatch.setattr(requests.main_memory, "total_gib", lambda: 1.0)
    reason = resolver().why_not_here(load_catalog()["embedded"])
    assert reason == "embedded needs 1.2 GiB of main memory on a CPU, and there are 1.0"
