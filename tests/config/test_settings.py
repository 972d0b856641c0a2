"""Settings: which source wins, and that nothing wrong or unknown gets by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config import settings as module
from config.errors import ConfigurationError
from config.settings import OTHER_NAMES, ROOT, Settings, is_loopback, leaves, load_settings

KEY = "k" * 32
# A value other than the default for every leaf: as text in the environment, and as it is read.
OTHER: dict[str, tuple[str, Any]] = {
    "host": ("127.0.0.2", "127.0.0.2"),
    "port": ("9999", 9999),
    "api_keys": (f"{KEY}, {'l' * 16}", (KEY, "l" * 16)),
    "allowed_hosts": ("a.example,b.example", ("a.example", "b.example")),
    "page_origins": ("http://a.example", ("http://a.example",)),
    "max_body_bytes": ("2048", 2048),
    "max_lora_bytes": ("2048", 2048),
    "upload_patience_seconds": ("5", 5.0),
    "drain_seconds": ("1.5", 1.5),
    "log_level": ("debug", "debug"),
    "max_queue_size": ("7", 7),
    "max_attempts": ("3", 3),
    "gpus": ("0,1", "0,1"),
    "fake_gpus": ("2", 2),
    "preload": ("true", True),
    "threads": ("3", 3),
    "start_timeout_seconds": ("9", 9.0),
    "model": ("embedded", "embedded"),
    "default_backend": ("flux-api", "flux-api"),
    "allow_download": ("false", False),
    "max_queued_per_key": ("3", 3),
    "max_wait_seconds": ("60", 60.0),
    "max_run_seconds": ("61", 61.0),
    "gpu_mode": ("split", "split"),
    "max_batch_size": ("3", 3),
    "idle_unload_seconds": ("62", 62.0),
    "stall_timeout_seconds": ("63", 63.0),
    "load_timeout_seconds": ("64", 64.0),
    "cancel_timeout_seconds": ("65", 65.0),
    "engine": ("diffusers", "diffusers"),
    "fp8_weights": ("speed", "speed"),
    "compile": ("on", "on"),
    "mflux_quantize": ("4", 4),
    "sd_model_id": ("sdxl-base", "sdxl-base"),
    "local_model_id": ("flux2-klein-4b", "flux2-klein-4b"),
    "local_steps": ("6", 6),
    "local_guidance_scale": ("4.5", 4.5),
    "local_max_image_size": ("1024", 1024),
    "hf_token": ("hf_1", "hf_1"),
    "models_dir": ("/tmp/m", Path("/tmp/m")),
    "model_memory_gib": ("12.5", 12.5),
    "offload": ("on", "on"),
    "safety_checker": ("block", "block"),
    "safety_model": ("somebody/judge", "somebody/judge"),
    "device": ("cpu", "cpu"),
    "output_dir": ("/tmp/o", Path("/tmp/o")),
    "data_dir": ("/tmp/d", Path("/tmp/d")),
    "lora_dir": ("/tmp/l", Path("/tmp/l")),
    "min_free_mib": ("1", 1),
    "bfl_api_key": ("bfl_1", "bfl_1"),
    "bfl_api_base": ("http://127.0.0.1:9100/", "http://127.0.0.1:9100/v1"),
    "bfl_default_model": ("flux-2-max", "flux-2-max"),
    "bfl_poll_interval": ("0.5", 0.5),
    "bfl_poll_timeout": ("60", 60.0),
    "bfl_concurrency": ("3", 3),
    "bfl_daily_budget_usd": ("2.5", 2.5),
    "cleanup_interval_minutes": ("0", 0.0),
    "cleanup_output_days": ("30", 30.0),
    "cleanup_max_outputs": ("1000", 1000),
    "cleanup_max_output_gib": ("10.5", 10.5),
    "cleanup_thumbnail_days": ("0", 0.0),
    "cleanup_job_days": ("2", 2.0),
    "cleanup_max_jobs": ("5000", 5000),
    "cleanup_usage_days": ("32", 32.0),
    "cleanup_log_days": ("0", 0.0),
    "log_dir": ("/var/log/flux", Path("/var/log/flux")),
    "log_to_file": ("false", False),
    "log_max_mib": ("0.5", 0.5),
    "log_keep": ("9", 9),
    "log_prompts": ("true", True),
    "console_level": ("error", "error"),
    "console_format": ("json", "json"),
    "fleet_precision": ("fp4", "fp4"),
    "fleet_node": ("studio-2.local", "studio-2.local"),
    "fleet_port": ("7000", 7000),
    "fleet_token": ("secret", "secret"),
    "fleet_join": ("192.0.2.10", "192.0.2.10"),
    "database_url": ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    "fleet_object_store_mib": ("512", 512),
    "fleet_cache_gib": ("0.5", 0.5),
    "fleet_min_replicas": ("1", 1),
    "fleet_max_replicas": ("8", 8),
    "fleet_idle_seconds": ("60", 60.0),
}
WRONG = [
    ("FLUX_PORT", "0"),
    ("FLUX_PORT", "65536"),
    ("FLUX_PORT", "eight"),
    ("FLUX_PORT", "80.5"),
    ("FLUX_PORT", ""),
    ("FLUX_MAX_BODY_BYTES", "1"),
    ("FLUX_FLEET_NODE", "a/b"),
    ("FLUX_FLEET_PORT", "80"),
    ("FLUX_FLEET_OBJECT_STORE_MIB", "1"),
    ("FLUX_FLEET_CACHE_GIB", "0"),
    ("FLUX_FLEET_IDLE_SECONDS", "0"),
    ("FLUX_DRAIN_SECONDS", "-1"),
    ("FLUX_DRAIN_SECONDS", "nan"),
    ("FLUX_DRAIN_SECONDS", "inf"),
    ("FLUX_MAX_LORA_BYTES", "1023"),
    ("FLUX_MAX_LORA_BYTES", str(2**31 + 1)),
    ("FLUX_UPLOAD_PATIENCE_SECONDS", "0"),
    ("FLUX_LOG_LEVEL", "loud"),
    ("FLUX_LOG_MAX_MIB", "0"),
    ("FLUX_LOG_KEEP", "0"),
    ("FLUX_CONSOLE_LEVEL", "off"),
    ("FLUX_CONSOLE_FORMAT", "yaml"),
    ("FLUX_MAX_QUEUE_SIZE", "0"),
    ("FLUX_MAX_QUEUE_SIZE", "100001"),
    ("FLUX_MAX_ATTEMPTS", "0"),
    ("FLUX_GPUS", "all"),
    ("FLUX_GPUS", "0,0"),
    ("FLUX_GPUS", "-1"),
    ("FLUX_GPUS", "0;1"),
    ("FLUX_GPUS", ""),
    ("FLUX_FAKE_GPUS", "9"),
    ("FLUX_PRELOAD", "maybe"),
    ("FLUX_THREADS", "-1"),
    ("FLUX_START_TIMEOUT_SECONDS", "0"),
    ("FLUX_START_TIMEOUT_SECONDS", "inf"),
    ("FLUX_MIN_FREE_MIB", "-1"),
    ("FLUX_MODEL_MEMORY_GIB", "0"),
    ("FLUX_MODEL_MEMORY_GIB", "all"),
    ("FLUX_OFFLOAD", "maybe"),
    ("FLUX_SAFETY_CHECKER", "on"),
    ("FLUX_DEVICE", "rocm"),
    ("FLUX_BFL_API_BASE", "http://api.bfl.ai/v1"),
    ("FLUX_BFL_API_BASE", "https://key@api.bfl.ai/v1"),
    ("FLUX_BFL_API_BASE", "api.bfl.ai"),
    ("FLUX_BFL_POLL_INTERVAL", "0"),
    ("FLUX_BFL_POLL_TIMEOUT", "0"),
    ("FLUX_BFL_CONCURRENCY", "25"),
    ("FLUX_BFL_DAILY_BUDGET_USD", "-1"),
    ("FLUX_CLEANUP_INTERVAL_MINUTES", "-1"),
    ("FLUX_CLEANUP_OUTPUT_DAYS", "-1"),
    ("FLUX_CLEANUP_OUTPUT_DAYS", "inf"),
    ("FLUX_CLEANUP_OUTPUT_DAYS", "1e9"),
    ("FLUX_CLEANUP_INTERVAL_MINUTES", "1e12"),
    ("FLUX_CLEANUP_OUTPUT_DAYS", "a week"),
    ("FLUX_CLEANUP_MAX_OUTPUTS", "1.5"),
    ("FLUX_CLEANUP_JOB_DAYS", "1"),
    ("FLUX_CLEANUP_USAGE_DAYS", "31"),
    ("FLUX_HOST", ""),
    ("FLUX_HOST", "http://127.0.0.1"),
    ("FLUX_HOST", "127.0.0.1:8001"),
    ("FLUX_THREADS", "1025"),
    ("FLUX_OUTPUT_DIR", ""),
    ("FLUX_DATA_DIR", " "),
    ("FLUX_LORA_DIR", ""),
    ("FLUX_LOG_DIR", ""),
    ("FLUX_MODELS_DIR", ""),
    ("FLUX_OUTPUT_DIR", "~nobody-of-this-name/pictures"),
]

Toml = Callable[[str], dict[str, str]]


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    """Writes a TOML file; returns the environment that names it."""

    def write(text: str) -> dict[str, str]:
        path = tmp_path / "service.toml"
        path.write_text(text, encoding="utf-8")
        return {"FLUX_CONFIG": str(path)}

    return write


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root of one's own, with the service's TOML and no variable set."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "bf16.toml").write_text("[server]\nport = 1002\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("FLUX_PORT", "FLUX_CONFIG", "BF16_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def plain(value: Any) -> Any:
    """A leaf with its secrets opened."""
    if isinstance(value, tuple):
        return tuple(getattr(item, "get_secret_value", lambda item=item: item)() for item in value)
    return getattr(value, "get_secret_value", lambda: value)()


def leaf(settings: Settings, key: str) -> Any:
    (section,) = [section for section, name, _ in leaves() if name == key]
    return plain(getattr(getattr(settings, section), key))


def refused(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings("bf16", environ)
    return str(caught.value)


# Sources


def test_settings_table_here_has_every_leaf() -> None:
    assert set(OTHER) == {key for _, key, _ in leaves()}


def test_settings_leaf_names_are_unique() -> None:
    assert Counter(key for _, key, _ in leaves()).most_common(1)[0][1] == 1


@pytest.mark.parametrize("key", OTHER)
def test_settings_leaf_is_read_from_the_environment(key: str) -> None:
    text, value = OTHER[key]
    settings = load_settings("bf16", {f"FLUX_{key.upper()}": text})
    assert leaf(settings, key) == value != leaf(load_settings("bf16", {}), key)


@pytest.mark.parametrize(("precision", "port"), [("bf16", 8001), ("fp4", 8000)])
def test_settings_port_follows_from_the_service(precision: str, port: int) -> None:
    assert load_settings(precision, {}).server.port == port


def test_settings_source_without_any_is_the_default(toml: Toml) -> None:
    assert load_settings("bf16", toml("")) == Settings()


def test_settings_toml_wins_over_the_default(toml: Toml) -> None:
    assert load_settings("bf16", toml("[queue]\nmax_queue_size = 5")).queue.max_queue_size == 5


def test_settings_environment_wins_over_toml(toml: Toml) -> None:
    environ = toml("[server]\nport = 1234") | {"FLUX_PORT": "4321"}
    assert load_settings("bf16", environ).server.port == 4321


def test_settings_dotenv_wins_over_toml(project: Path) -> None:
    assert load_settings("bf16").server.port == 1002
    (project / ".env").write_text("FLUX_PORT=1003\n")
    assert load_settings("bf16").server.port == 1003


def test_settings_environment_wins_over_dotenv(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".env").write_text("FLUX_PORT=1003\n")
    monkeypatch.setenv("FLUX_PORT", "1004")
    assert load_settings("bf16").server.port == 1004


def test_settings_dotenv_that_is_no_text_is_named(project: Path) -> None:
    (project / ".env").write_bytes(b"FLUX_MODEL=\xff\n")
    with pytest.raises(ConfigurationError, match=r"\.env: no UTF-8 text"):
        load_settings("bf16")


def test_settings_dotenv_that_cannot_be_read_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all there is, so the system's word is a stand-in."""
    (project / ".env").touch()

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dotenv.dotenv_values", refused)
    with pytest.raises(ConfigurationError, match=r"\.env: cannot be read: Permission denied"):
        load_settings("bf16")


def test_settings_dotenv_unknown_name_is_refused(project: Path) -> None:
    (project / ".env").write_text("FLUX_PROT=1003\n")
    with pytest.raises(ConfigurationError, match="FLUX_PROT.*did you mean FLUX_PORT"):
        load_settings("bf16")


def test_settings_port_variable_of_the_service_is_read() -> None:
    assert load_settings("bf16", {"BF16_PORT": "1", "FP4_PORT": "2"}).server.port == 1
    assert load_settings("fp4", {"BF16_PORT": "1", "FP4_PORT": "2"}).server.port == 2


def test_settings_flux_port_wins_over_the_services_own_variable() -> None:
    assert load_settings("bf16", {"BF16_PORT": "1", "FLUX_PORT": "3"}).server.port == 3


def test_settings_other_variables_are_left_alone() -> None:
    assert load_settings("bf16", {"PATH": "/bin", "flux_port": "1"}) == load_settings("bf16", {})


@pytest.mark.parametrize("key", ["models_dir", "output_dir", "data_dir"])
def test_settings_relative_folder_lies_in_the_project(key: str) -> None:
    assert leaf(load_settings("bf16", {f"FLUX_{key.upper()}": "here"}), key) == ROOT / "here"


def test_settings_folder_of_the_user_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-test")
    settings = load_settings("bf16", {"FLUX_OUTPUT_DIR": "~/pictures"})
    assert settings.storage.output_dir == Path("/home/of-the-test/pictures")


def test_settings_host_with_a_space_beside_it_is_that_host() -> None:
    assert load_settings("bf16", {"FLUX_HOST": " 127.0.0.1 "}).server.host == "127.0.0.1"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings("bf16", {}).server.port = 1  # type: ignore[misc]


# Refusals


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLUX_PROT", "FLUX_PORT"),
        ("FLUX_API_KEY", "FLUX_API_KEYS"),
        ("FLUX_MAX_QUEUE", "FLUX_MAX_QUEUE_SIZE"),
        ("FLUX_OUTPUT", "FLUX_OUTPUT_DIR"),
    ],
)
def test_settings_unknown_variable_is_refused_with_a_suggestion(name: str, meant: str) -> None:
    text = refused({name: "1"})
    assert text.startswith(f"{name}:") and f"did you mean {meant}?" in text


def test_settings_unknown_variable_far_from_all_is_refused() -> None:
    text = refused({"FLUX_ZZZZZZZZZZ": "1"})
    assert "FLUX_ZZZZZZZZZZ" in text and ".env.example" in text


def test_settings_unknown_toml_key_is_refused_with_a_suggestion(toml: Toml) -> None:
    text = refused(toml("[server]\nprot = 1"))
    assert "server.prot" in text and "did you mean port?" in text and "service.toml" in text


def test_settings_unknown_toml_section_is_refused(toml: Toml) -> None:
    assert "[servers]" in refused(toml("[servers]\nport = 1"))


def test_settings_toml_key_in_the_wrong_section_is_refused(toml: Toml) -> None:
    assert "queue.port" in refused(toml("[queue]\nport = 1"))


@pytest.mark.parametrize("text", ["port =", "[server", "\x00", "[server]\nport = 1\nport = 2"])
def test_settings_broken_toml_is_refused(toml: Toml, text: str) -> None:
    assert "not valid TOML" in refused(toml(text))


@pytest.mark.parametrize("path", ["/no/such/file.toml", "", str(ROOT)])
def test_settings_toml_that_cannot_be_read_is_refused(path: str) -> None:
    assert "FLUX_CONFIG" in refused({"FLUX_CONFIG": path})


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_settings_wrong_value_names_the_variable_and_the_value(name: str, text: str) -> None:
    said = refused({name: text})
    assert name in said and repr(text) in said


def test_settings_wrong_toml_value_names_file_and_key(toml: Toml) -> None:
    said = refused(toml('[server]\nport = "eight"'))
    assert "service.toml" in said and "server.port" in said and "eight" in said


def test_settings_several_wrong_values_are_all_named() -> None:
    said = refused({"FLUX_PORT": "0", "FLUX_THREADS": "x"})
    assert "FLUX_PORT" in said and "FLUX_THREADS" in said


# Exposure


@pytest.mark.parametrize("host", ["*", "http://a.example", "a.example:80", "*.a.example", "a b"])
def test_settings_allowed_host_that_is_none_is_refused(host: str) -> None:
    said = refused({"FLUX_ALLOWED_HOSTS": f"b.example,::1,10.0.0.1,{host}"})
    assert "FLUX_ALLOWED_HOSTS" in said and repr(host) in said


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "a.example", "http://a.example/", "http://a.example/x", "HTTP://a.example", "http://*.example",
     "http://a.example:80:90", "http://user@a.example", "http://a.example?x", "file://", "//a.example"],
)  # fmt: skip
def test_settings_origin_that_is_none_is_refused(origin: str) -> None:
    said = refused({"FLUX_PAGE_ORIGINS": f"http://b.example,{origin}"})
    assert "FLUX_PAGE_ORIGINS" in said and repr(origin) in said


@pytest.mark.parametrize(
    "origin",
    ["http://a.example", "https://a.example:8443", "http://[::1]:9000", "app://obsidian.md"],
)
def test_settings_origin_that_browsers_send_is_taken(origin: str) -> None:
    environ = {"FLUX_PAGE_ORIGINS": origin}
    assert load_settings("bf16", environ).server.page_origins == (origin,)


def test_settings_open_address_with_a_key_is_taken() -> None:
    environ = {"FLUX_HOST": "0.0.0.0", "FLUX_API_KEYS": KEY}
    assert load_settings("bf16", environ).server.host == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.53"])
def test_settings_loopback_needs_no_key(host: str) -> None:
    assert load_settings("bf16", {"FLUX_HOST": host}).server.api_keys == ()


@pytest.mark.parametrize(
    "host", ["127.evil.example", "127.0.0.1.evil.example", "127.", "127.0.0.1.", "localhost.evil.example"]
)  # fmt: skip
def test_is_loopback_name_that_only_begins_so_is_none(host: str) -> None:
    """Whoever owns such a name may let it mean any address."""
    assert not is_loopback(host)


@pytest.mark.parametrize("text", ["short", f"{KEY},short"])
def test_settings_short_key_is_refused_and_hidden(text: str) -> None:
    said = refused({"FLUX_API_KEYS": text})
    assert "FLUX_API_KEYS" in said and "short" not in said


def test_settings_key_no_header_can_carry_is_refused() -> None:
    said = refused({"FLUX_API_KEYS": "schlüssel" * 4})
    assert "FLUX_API_KEYS" in said and "schlüssel" not in said


def test_settings_wrong_keys_in_toml_are_hidden(toml: Toml) -> None:
    said = refused(toml(f'[server]\napi_keys = "{KEY}"'))
    assert "api_keys" in said and KEY not in said


def test_settings_keys_are_hidden_when_shown() -> None:
    settings = load_settings("bf16", {"FLUX_API_KEYS": KEY})
    assert KEY not in repr(settings) + str(settings) + settings.model_dump_json()


# .env.example


def example_lines() -> list[tuple[str, str, str]]:
    """(comment above, name, default) of each setting in .env.example."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return [
        (above, *line.removeprefix("# ").split("=", 1))
        for above, line in zip(lines, lines[1:], strict=False)
        if line.startswith("# FLUX_")
    ]


def test_env_example_lists_every_leaf_and_nothing_else() -> None:
    assert [name for _, name, _ in example_lines()] == [name for _, _, name in leaves()]


def test_env_example_defaults_are_the_defaults() -> None:
    given = {name: default for _, name, default in example_lines()}
    # An empty list has an empty default, which reads back as the empty list.
    assert load_settings("bf16", given) == load_settings("bf16", {})


def test_env_example_every_setting_is_explained() -> None:
    assert all(above.startswith("# ") and len(above) > 10 for above, _, _ in example_lines())


def test_env_example_is_what_the_script_writes() -> None:
    from scripts.write_env_example import env_example

    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example()


def test_env_example_sets_nothing_as_it_is() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert all(not line or line.startswith("#") for line in lines)


def test_dotenv_is_kept_out_of_the_repository() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


# Names of other programs


@pytest.mark.parametrize(("name", "ours"), sorted(OTHER_NAMES.items()))
def test_settings_other_programs_name_is_read_and_ours_comes_first(name: str, ours: str) -> None:
    key = ours.removeprefix("FLUX_").lower()
    (theirs, expected), default = OTHER[key], leaf(Settings(), key)
    assert leaf(load_settings("bf16", {name: theirs}), key) == expected
    assert leaf(load_settings("bf16", {name: ""}), key) == default
    assert leaf(load_settings("bf16", {name: "9.5", ours: theirs}), key) == expected


def test_settings_other_programs_wrong_value_is_refused_by_its_name() -> None:
    said = refused({"SD_BFL_POLL_TIMEOUT": "soon"})
    assert "SD_BFL_POLL_TIMEOUT" in said and "soon" in said


def test_settings_cloud_key_that_fits_no_header_is_refused_without_being_told() -> None:
    said = refused({"SD_BFL_API_KEY": "two words"})
    assert "SD_BFL_API_KEY" in said and "two words" not in said


def test_settings_cloud_key_is_in_no_text_of_the_tree() -> None:
    settings = load_settings("bf16", {"SD_BFL_API_KEY": "bfl_secret_4711"})
    assert "4711" not in repr(settings) + str(settings) + settings.model_dump_json()
