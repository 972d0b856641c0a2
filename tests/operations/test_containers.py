"""Dockerfile and docker-compose.yml: their own tools find nothing, and what an image holds starts and answers.

No image is built here: that needs an engine and the network. What COPY brings is put into a folder and run there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import OTHER_NAMES, ROOT, leaves, load_settings
from scripts.containers import healthy
from tests.operations import image
from tests.operations.checkout import clean_environment
from tests.service import free_port

COMPOSE = ROOT / "docker-compose.yml"
SETTINGS = {name for _, _, name in leaves()}
KEY = "key-of-the-container-0123456789"
START_SECONDS = 180

# What another service's documentation has its users write into .env for its containers.
OTHERS_ENV = """\
SD_DEFAULT_BACKEND=flux-api
SD_BFL_API_KEY=bfl_0123456789abcdef
SD_BFL_API_BASE=https://api.bfl.ai/v1
SD_BFL_DEFAULT_MODEL=flux-2-pro-preview
SD_BFL_POLL_INTERVAL=1.0
SD_BFL_POLL_TIMEOUT=120.0
SD_FLUX_MODEL_ID=black-forest-labs/FLUX.2-klein-4B
SD_FLUX_DEFAULT_STEPS=4
SD_FLUX_DEFAULT_GUIDANCE_SCALE=4.0
SD_FLUX_MAX_IMAGE_SIZE=2048
SD_MODEL_ID=stabilityai/stable-diffusion-xl-base-1.0
SD_DEVICE=auto
SD_OUTPUT_DIR=./outputs
SD_MODEL_DIR=./models
SD_HUGGINGFACE_TOKEN=hf_0123456789
SD_API_KEY=a-key-of-sixteen-or-more
SD_SAFETY_CHECKER=flag
"""


# The Dockerfile


def test_dockerfile_is_clean() -> None:
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    done = subprocess.run(
        [hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("target", image.TARGETS)
def test_image_runs_as_a_user_behind_an_init_and_is_looked_after(target: str) -> None:
    last = dict(image.instructions(target))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    init, _, command = json.loads(last["ENTRYPOINT"])
    assert init == "/usr/bin/tini" and (ROOT / command.removeprefix("/app/")).is_file()
    assert "scripts.containers.healthy" in last["HEALTHCHECK"]
    assert image.instructions(target)[-1][0] == "USER", "nothing after it is done as root"


def test_base_is_pinned_and_has_the_oldest_python_that_is_supported() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    assert re.fullmatch(r"debian:12\.\d+-slim(@sha256:[0-9a-f]{64})?", base)
    # Debian 12 has Python 3.11.
    assert "OLDEST_PYTHON=python3.11 " in (ROOT / "scripts" / "lock.sh").read_text()
    outside = {rest.split()[0] for word, rest in image._all_instructions() if word == "FROM"}
    assert outside - {"base", "builder", "service"} == {"${BASE}"}


def test_everything_that_is_copied_is_there_and_in_the_context() -> None:
    sources = [
        source
        for target in (*image.TARGETS, "packages-cpu", "packages-cuda")
        for word, rest in image.instructions(target)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert len(set(sources)) >= 3
    for source in sources:
        assert (ROOT / source).exists() and (source == "." or image.is_in_context(source)), source


def test_context_has_the_code_and_the_embedded_model_and_nobodys_keys() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    taken = {path for path in tracked if image.is_in_context(path)}
    rooms = ("api/", "cli/", "config/", "fleet/", "frontend/", "models/", "scripts/", "utils/")
    assert {path for path in tracked if path.startswith(rooms)} <= taken
    assert {path for path in tracked if re.fullmatch(r"main_\w+\.py", path)} <= taken
    assert "models/embedded/transformer/diffusion_pytorch_model.safetensors" in taken
    left = (".env", "data/keys.sqlite3", "data/metrics.key", "generated_images/a.png", ".git/config",
            "uploads/lora_files/a.safetensors", "logs/bf16.log", ".venv/bin/python", "tests/service.py",
            "api/__pycache__/app.cpython-311.pyc", "models_cache/x", "id_rsa")  # fmt: skip
    assert not [path for path in left if image.is_in_context(path)]


def test_folders_of_the_services_are_volumes_everywhere() -> None:
    made = {f"/app/{folder}" for folder in image.folders_of_the_services()}
    (volumes,) = [json.loads(rest) for word, rest in image.instructions("cpu") if word == "VOLUME"]
    assert set(volumes) == made
    settings = load_settings("bf16", {})
    written = (settings.models.models_dir, settings.storage.output_dir, settings.storage.data_dir,
               settings.storage.lora_dir, settings.log.log_dir)  # fmt: skip
    assert {f"/app/{folder.relative_to(ROOT)}" for folder in written} == made


# What an image holds, run


class App:
    """`/app` of an image, with the environment of the image and of a `docker run`."""

    def __init__(self, folder: Path) -> None:
        self.folder = image.make_app_folder(folder)
        self.port = free_port()
        set_by_image = image.environment("cpu")
        del set_by_image["PATH"]  # the container's own
        set_by_image["HOME"] = str(folder.parent)
        self.environ = clean_environment(**set_by_image, FLUX_PORT=self.port)

    def command(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.folder, env={**self.environ, **environ}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.command("scripts/containers/run.sh", *words, **environ)

    def is_healthy(self) -> subprocess.CompletedProcess[str]:
        return self.command(".venv/bin/python", "-m", "scripts.containers.healthy")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    return App(tmp_path_factory.mktemp("image") / "app")


@pytest.fixture
def running(app: App) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["scripts/containers/run.sh"],
        cwd=app.folder,
        env={**app.environ, "FLUX_API_KEYS": KEY, "FLUX_MIN_FREE_MIB": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(START_SECONDS)


def test_container_answers_is_healthy_and_ends_at_a_stop(
    app: App, running: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (found := app.is_healthy()).returncode != 0:  # an engine looks again and again too
        assert running.poll() is None and time.monotonic() < deadline, found.stdout
    running.send_signal(signal.SIGTERM)  # what `docker stop` sends
    assert running.wait(START_SECONDS) == 0
    after = app.is_healthy()
    assert after.returncode == 1 and f"no answer on port {app.port}" in after.stdout


class TakesNoJobs(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b"every worker died again and again")

    def log_message(self, *_: object) -> None:
        pass


def test_container_that_takes_no_jobs_is_unhealthy_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with HTTPServer(("127.0.0.1", 0), TakesNoJobs) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setenv("FLUX_PORT", str(server.server_port))
        monkeypatch.setenv("FLUX_HOST", "0.0.0.0")
        assert healthy.main() == 1
    assert capsys.readouterr().out == "503: every worker died again and again\n"


def test_container_without_a_key_says_how_to_make_one(app: App) -> None:
    done = app.run()
    assert done.returncode == 78 and "scripts.keys make" in done.stderr


def test_container_runs_the_command_it_is_given(app: App) -> None:
    done = app.run(".venv/bin/python", "-m", "scripts.keys", "list")
    assert done.returncode == 0, done.stderr


def test_container_of_a_service_that_there_is_not_names_those_there_are(app: App) -> None:
    done = app.run(SERVICE="bf17")
    assert done.returncode == 78
    assert "bf16" in done.stderr and "fp4" in done.stderr and "'bf17'" in done.stderr


def test_container_whose_volume_cannot_be_written_says_who_must_own_it(app: App) -> None:
    folder = app.folder / "generated_images"
    folder.rmdir()  # root may write everywhere, but not where nothing is
    try:
        done = app.run()
    finally:
        folder.mkdir()
    assert done.returncode == 78
    assert f"{folder} cannot be written" in done.stderr and "chown" in done.stderr


# docker-compose.yml


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What compose itself makes of the file, with another service's .env beside it."""
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(COMPOSE, folder)
    (folder / ".env").write_text(OTHERS_ENV)
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None  # fmt: skip
    tool = ["docker", "compose"] if plugin and plugin.returncode == 0 else ["docker-compose"]
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    done = subprocess.run(
        [*tool, *profiles, "config"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


PROFILES = ("cpu", "gpu", "fleet", "fleet-cpu", "monitoring")
OURS = {
    "bf16-cpu": "bf16",
    "fp4-cpu": "fp4",
    "bf16": "bf16",
    "fp4": "fp4",
    "fleet": "fleet",
    "fleet-cpu": "fleet",
}


def test_compose_has_every_profile(compose: dict[str, Any]) -> None:
    by_profile = {
        profile: {name for name, s in compose["services"].items() if profile in s["profiles"]}
        for profile in PROFILES
    }
    assert by_profile == {
        "cpu": {"bf16-cpu", "fp4-cpu"},
        "gpu": {"bf16", "fp4"},
        "fleet": {"fleet"},
        "fleet-cpu": {"fleet-cpu"},
        "monitoring": {"prometheus", "grafana"},
    }


@pytest.mark.parametrize("name", OURS)
def test_compose_service_has_the_settings_of_env_and_writes_into_volumes_alone(
    compose: dict[str, Any], name: str
) -> None:
    service = compose["services"][name]
    environ = {key: str(value) for key, value in service["environment"].items()}
    assert environ["SERVICE"] == OURS[name] and environ.keys() - {"SERVICE"} <= SETTINGS | OTHER_NAMES.keys()  # fmt: skip
    settings = load_settings(environ["SERVICE"], environ)
    assert (settings.server.host, settings.models.default_backend) == ("0.0.0.0", "flux-api")
    assert settings.cloud.bfl_api_key.get_secret_value() == "bfl_0123456789abcdef"
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["a-key-of-sixteen-or-more"]  # fmt: skip
    assert settings.models.local_steps == 4 and settings.models.sd_model_id.endswith("xl-base-1.0")
    # A path of the host means nothing here, so the volumes' win.
    assert str(settings.storage.output_dir) == "/app/generated_images"
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    targets = {_target(volume) for volume in service["volumes"]}
    assert targets == {f"/app/{folder}" for folder in image.folders_of_the_services()}


def _target(volume: str | dict[str, Any]) -> str:
    return volume.split(":")[1] if isinstance(volume, str) else volume["target"]


def test_other_services_variables_are_all_known_here() -> None:
    names = set(re.findall(r"^(SD_\w+)=", OTHERS_ENV, re.MULTILINE))
    assert names == OTHER_NAMES.keys()


@pytest.mark.parametrize("name", ["fleet", "fleet-cpu"])
def test_compose_builds_a_fleet_with_what_it_needs(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    kind = {"fleet": "cuda", "fleet-cpu": "cpu"}[name]
    assert (service["build"]["target"], service["build"]["args"]) == (kind, {"WITH": "--fleet"})
    assert service["image"] == f"flux-api:{kind}-fleet"
    packages = image.instructions(f"packages-{kind}")
    assert ("ARG", "WITH") in packages and '${WITH:+"${WITH}"}' in packages[-1][1]
    (usage,) = re.findall(r"Usage: scripts/setup_env.sh.*", (ROOT / "scripts/setup_env.sh").read_text())  # fmt: skip
    assert "--fleet" in usage and (ROOT / "main_fleet.py").is_file()


@pytest.mark.parametrize("name", ["bf16", "fp4"])
def test_compose_gives_a_gpu_to_each_service(compose: dict[str, Any], name: str) -> None:
    (device,) = compose["services"][name]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"] and device["capabilities"] == ["gpu"]


def test_compose_publishes_on_loopback_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for port in service["ports"]:
            text = port if isinstance(port, str) else port["host_ip"]
            assert text.startswith("127.0.0.1"), (name, port)


def test_compose_mounts_files_that_are_there() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    volumes = [volume for service in services.values() for volume in service.get("volumes", ())]
    sources = [v["source"] if isinstance(v, dict) else v.split(":")[0] for v in volumes]
    mounted = [source for source in sources if source.startswith("./")]
    made_by_hand = {"./data/metrics.key"}  # docs/containers.md says how
    assert len(mounted) >= 5 and made_by_hand <= set(mounted)
    assert not [path for path in mounted if path not in made_by_hand and not (ROOT / path).is_file()]  # fmt: skip


# What Prometheus and Grafana are given there


def test_prometheus_finds_the_services_and_its_rules(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    monitoring = ROOT / "scripts" / "monitoring"
    text = (monitoring / "containers" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    shutil.copy(monitoring / "alerts.yml", tmp_path)
    (tmp_path / "metrics.key").write_text(KEY)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = yaml.safe_load(text)["scrape_configs"]
    names = {name: int(port) for name, port in (t.split(":") for t in job["static_configs"][0]["targets"])}  # fmt: skip
    assert names == {"bf16": 8001, "fp4": 8000}
    for name, service in OURS.items():
        if service not in names:
            continue
        environ = {k: str(v) for k, v in compose["services"][name]["environment"].items()}
        settings = load_settings(service, environ)
        assert settings.server.port == names[service]
        # Any Host is answered, where there is a key and no list of names: so is this one.
        assert not settings.server.allowed_hosts
        aliases = compose["services"][name].get("networks", {}).get("default") or {}
        assert service in {name, *aliases.get("aliases", ())}


def test_grafana_shows_our_dashboard_from_our_prometheus() -> None:
    folder = ROOT / "scripts" / "monitoring" / "containers"
    (source,) = yaml.safe_load((folder / "datasource.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards.yml").read_text())["providers"]
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    targets = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert any(Path(target).parent == Path(provider["options"]["path"]) for target in targets)
