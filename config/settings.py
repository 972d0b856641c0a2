"""The settings: one frozen tree, read once at start and passed in.

Order of sources, first wins: `FLUX_*` environment, `.env` in the project's root, the service's
TOML (`config/<precision>.toml`, or the file named by `FLUX_CONFIG`), the defaults below.

A leaf's environment name is `FLUX_` and its own name in capitals, whatever section it stands in
(`queue.max_queue_size` is `FLUX_MAX_QUEUE_SIZE`), so leaf names are unique over the tree. Lists
are written with commas. A `FLUX_*` name or a TOML key that nothing reads is an error: a typo must
not look like a setting.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from config.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
ENV_PREFIX = "FLUX_"
# What an HTTP header can carry and nobody guesses.
_KEY = re.compile(r"[!-~]{16,}")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEADER_TEXT = re.compile(r"[!-~]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
# Not leaves of the tree: the first is read by this module itself, the other by the command line. Its FLUX_API_KEY is
# not among them: who sets that for a service means FLUX_API_KEYS, and would have a service that asks for no key.
ENV_RESERVED = frozenset({"FLUX_CONFIG", "FLUX_URL"})

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(Section):
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Anything but loopback needs a key (`python -m scripts.keys make NAME`).",
    )
    port: int = Field(8001, ge=1, le=65535, description="TCP port.")
    api_keys: tuple[SecretStr, ...] = Field(
        (),
        description="Keys that may do everything, beside those of `python -m scripts.keys`; "
        "where there is neither, none is asked for.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Host header names to answer besides loopback and `host` (no ports).",
    )
    page_origins: tuple[str, ...] = Field(
        ("http://127.0.0.1:9000", "http://localhost:9000"),
        description="Browser origins besides our own that may call the API.",
    )
    max_body_bytes: int = Field(
        30 * 2**20, ge=1024, description="Largest body of a request for pictures, bytes."
    )
    max_lora_bytes: int = Field(
        2 * 2**30,
        ge=1024,
        le=2 * 2**30,
        description="Largest LoRA that is taken, uploaded or fetched, bytes.",
    )
    upload_patience_seconds: float = Field(
        30.0,
        gt=0,
        description="A request whose head is not whole in such a time, or whose body brings less than 64 KiB, is ended.",
    )
    drain_seconds: float = Field(
        10.0, ge=0, description="How long a stop waits for the running jobs."
    )

    @field_validator("host")
    @classmethod
    def _host_is_one(cls, value: str) -> str:
        value = value.strip()
        if not _is_host(value):
            raise ValueError(
                "expected an address or a name of this machine without http:// and port, such as 127.0.0.1; "
                "0.0.0.0 is all of its addresses"
            )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in value if not _is_host(name)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is no host; each is the name or address in a client's URL without http:// and port, "
                "such as draw.example.org. `*` is not taken"
            )
        return value

    @field_validator("page_origins")
    @classmethod
    def _origins_are_whole(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [origin for origin in value if not _ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is no origin; each is written as a browser sends it, such as "
                "http://192.168.1.5:9000, in lower case and without a path. `*` and `null` are not taken"
            )
        return value


class QueueSettings(Section):
    max_queue_size: int = Field(
        100, ge=1, le=100_000, description="Jobs that may wait; one more is 429."
    )
    max_attempts: int = Field(
        2,
        ge=1,
        le=10,
        description="Times a job is begun before a dying worker fails it.",
    )
    max_queued_per_key: int = Field(
        0, ge=0, description="Jobs of one API key that may wait; one more is 429; 0: no limit."
    )
    max_wait_seconds: float = Field(
        0.0, ge=0, description="A job that waited longer fails as `timeout`; 0: no limit."
    )
    max_run_seconds: float = Field(
        3600.0, ge=0, description="A job that runs longer fails as `timeout`; 0: no limit."
    )


class WorkerSettings(Section):
    gpus: str = Field(
        "auto",
        description="`auto` (all, else the CPU), `none` (the CPU), or indices as in `0,1`.",
    )
    fake_gpus: int = Field(
        0,
        ge=0,
        le=8,
        description="Start this many CPU workers in place of GPUs, for trying and testing.",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto",
        description="What draws: `cuda` (NVIDIA), `mps` (Apple's GPU), `cpu`; `auto`: the first of them there is.",
    )
    gpu_mode: Literal["each", "split"] = Field(
        "each",
        description="`each`: a worker per GPU; `split`: one worker, its model spread over all GPUs.",
    )
    max_batch_size: int = Field(
        0,
        ge=0,
        le=16,
        description="Pictures of like jobs drawn together; 0: several where it changes no bit (the CPU), else one.",
    )
    idle_unload_seconds: float = Field(
        0.0, ge=0, description="A worker idle for so long gives its model's memory back; 0: never."
    )
    stall_timeout_seconds: float = Field(
        180.0, gt=0, description="A job without a step for so long: its worker is ended."
    )
    load_timeout_seconds: float = Field(
        3600.0, gt=0, description="The same while a model is fetched and loaded."
    )
    cancel_timeout_seconds: float = Field(
        30.0, gt=0, description="A worker that does not leave a cancelled job by then is ended."
    )
    preload: bool = Field(
        False, description="Load the default model at start, not at the first request."
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a worker; 0: torch decides.")
    start_timeout_seconds: float = Field(
        180.0, gt=0, description="A worker that is not up by then is replaced."
    )

    @field_validator("gpus")
    @classmethod
    def _gpus_are_indices(cls, value: str) -> str:
        value = value.strip().lower()
        if value in ("auto", "none"):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() for part in parts) or len(set(map(int, parts))) != len(
            parts
        ):
            raise ValueError("expected `auto`, `none` or distinct GPU indices such as `0` or `1,2`")
        return ",".join(str(int(part)) for part in parts)


def _named(value: Any) -> Any:
    """A setting that was left empty must not mean the project itself."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("is empty; name a folder, or leave the setting out")
    return value


def _in_the_project(path: Path) -> Path:
    """Relative paths are relative to the project, wherever the service is started from; `~` is the user's folder."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path.parts[0]} is nobody's folder here; name it in full") from error
    return path if path.is_absolute() else ROOT / path


ProjectPath = Annotated[Path, BeforeValidator(_named), AfterValidator(_in_the_project)]


class ModelSettings(Section):
    model: str = Field(
        "auto",
        description="Default model id; `auto`: flux-schnell on a GPU, embedded without one.",
    )
    default_backend: str = Field(
        "auto",
        description="Backend of requests that name neither model nor backend, as `flux-api`; `auto`: of FLUX_MODEL.",
    )
    allow_download: bool = Field(
        True, description="Fetch missing models from the Hugging Face Hub on first use."
    )
    engine: str = Field(
        "auto",
        description="What computes: `auto`, or one of the service's engines (BF16: diffusers; FP4: nvfp4, nunchaku).",
    )
    fp8_weights: Literal["memory", "speed"] = Field(
        "memory",
        description="FP4 on Ada and Hopper: keep 4-bit weights and convert tile by tile, or convert once at load.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Compile models on an NVIDIA GPU, when they are loaded; pixels differ by rounding. `on`: all, the autoencoder too; `auto`: four-bit ones, which are slow without.",
    )
    sd_model_id: str = Field(
        "auto",
        description="The model of a request that names `backend: sd` and no model, by its id or its name on the Hub; `auto`: the first that runs here.",
    )
    local_model_id: str = Field("auto", description="The same for `backend: flux-local`.")
    local_steps: int = Field(
        0,
        ge=0,
        le=100,
        description="Steps of `flux-local` requests that name none; 0: the model's.",
    )
    local_guidance_scale: Literal["auto"] | Annotated[float, Field(ge=0, le=20)] = Field(
        "auto",
        description="The same of guidance_scale, for models that have it; `auto`: the model's.",
    )
    local_max_image_size: int = Field(
        0,
        ge=0,
        le=8192,
        description="Longest side of `flux-local` pictures, pixels; 0: the model's.",
    )
    hf_token: SecretStr = Field(
        SecretStr(""),
        description="Token for gated models of the Hugging Face Hub, where HF_TOKEN is not set.",
    )
    mflux_quantize: int = Field(
        0,
        description="Bits of the weights of mflux's models (Apple Silicon): 3, 4, 5, 6 or 8; 0: BF16.",
    )
    models_dir: ProjectPath = Field(
        ROOT / "models_cache",
        description="Where fetched models are kept (unless HF_HOME is set).",
    )
    model_memory_gib: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description="What the models of a worker may take together, GiB; `auto`: a GPU's memory but 1 GiB, half of main memory on a CPU.",
    )
    offload: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Weights wait in main memory until a GPU needs them (slower): where they do not fit, always, never.",
    )
    safety_checker: Literal["off", "flag", "block"] = Field(
        "flag",
        description="Pictures not safe for work: `flag` stores them blurred, `block` fails the job. Needs weights, see docs/models.md.",
    )
    safety_model: str = Field(
        "auto",
        description="Weights of the checker: a folder or a Hugging Face id; `auto`: what is on this machine.",
    )

    @field_validator("mflux_quantize")
    @classmethod
    def _mflux_has_such_weights(cls, value: int) -> int:
        if value not in (0, 3, 4, 5, 6, 8):
            raise ValueError("mflux quantises to 3, 4, 5, 6 or 8 bits; 0 is not at all")
        return value


class StorageSettings(Section):
    output_dir: ProjectPath = Field(
        ROOT / "generated_images", description="Where pictures are written."
    )
    data_dir: ProjectPath = Field(ROOT / "data", description="Where the job database lies.")
    lora_dir: ProjectPath = Field(
        ROOT / "uploads" / "lora_files",
        description="Where LoRAs are kept; the services of a machine may share it.",
    )
    min_free_mib: int = Field(
        512, ge=0, description="With less free disk no new job is taken, MiB."
    )


LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(Section):
    log_level: LogLevel = Field("info", description="Least level that is logged.")
    log_dir: ProjectPath = Field(
        ROOT / "logs",
        description="Where each service writes its log, a file of JSON lines.",
    )
    log_to_file: bool = Field(True, description="`false`: nothing is written there.")
    log_max_mib: float = Field(
        20.0, ge=0.01, le=100_000, description="A log that would get larger is rotated, MiB."
    )
    log_keep: int = Field(
        5,
        ge=1,
        le=1000,
        description="Rotated logs of a service that are kept beside the one in use.",
    )
    log_prompts: bool = Field(
        False, description="Prompts stand in the log too; they are often nobody else's business."
    )
    console_level: Literal["auto", "debug", "info", "warning", "error"] = Field(
        "auto",
        description="Least level that goes to the console (stderr) too; `auto`: FLUX_LOG_LEVEL.",
    )
    console_format: Literal["text", "json"] = Field(
        "text", description="Lines on the console: for people, or as in the file."
    )


class CloudSettings(Section):
    bfl_api_key: SecretStr = Field(
        SecretStr(""),
        description="Key of Black Forest Labs' cloud (`flux-api`); empty: its models cannot be asked for.",
    )
    bfl_api_base: str = Field(
        "https://api.bfl.ai/v1",
        description="Address of BFL's API, or of a stand-in. The key is sent there and to *.bfl.ai only.",
    )
    bfl_default_model: str = Field(
        "flux-2-pro-preview",
        description="The model of a request that names `backend: flux-api` and no model.",
    )
    bfl_poll_interval: float = Field(
        1.0, gt=0, le=60, description="Seconds between two looks at a picture that BFL draws."
    )
    bfl_poll_timeout: float = Field(
        120.0, gt=0, le=86_400, description="Seconds after which a picture of BFL is given up."
    )
    bfl_concurrency: int = Field(
        20, ge=1, le=24, description="Jobs that BFL is given at once; BFL allows 24 pictures."
    )
    bfl_daily_budget_usd: float = Field(
        0.0, ge=0, description="What BFL may cost in a day (UTC), in US dollars; 0: no limit."
    )

    @field_validator("bfl_api_key")
    @classmethod
    def _key_fits_a_header(cls, value: SecretStr) -> SecretStr:
        key = value.get_secret_value().strip()
        if key and not _HEADER_TEXT.fullmatch(key):
            raise ValueError("expected letters, digits and signs without spaces")
        return SecretStr(key)

    @field_validator("bfl_api_base")
    @classmethod
    def _base_is_safe(cls, value: str) -> str:
        parts = urlsplit(value.strip())
        is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
        is_safe = parts.scheme == "https" or (
            parts.scheme == "http" and is_loopback(parts.hostname or "")
        )
        if not (parts.hostname and is_plain and is_safe):
            raise ValueError(
                "expected https://host/v1, or http:// for a stand-in on this machine (127.0.0.1)"
            )
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/v1"))


class CleanupSettings(Section):
    cleanup_interval_minutes: float = Field(
        60.0,
        ge=0,
        le=1_000_000,
        description="How often a service removes what is too old or too much; 0: it does not, the flux-cleanup unit may.",
    )
    cleanup_output_days: float = Field(
        7.0,
        ge=0,
        le=100_000,
        description="Pictures older than this go, but for those that are pinned; 0: none.",
    )
    cleanup_max_outputs: int = Field(
        0, ge=0, description="Pictures of a service beyond so many go, oldest first; 0: no limit."
    )
    cleanup_max_output_gib: float = Field(
        0.0, ge=0, description="The same by what they take together, GiB; 0: no limit."
    )
    cleanup_thumbnail_days: float = Field(
        30.0,
        ge=0,
        le=100_000,
        description="Thumbnails older than this go; they are made again when asked for.",
    )
    cleanup_job_days: float = Field(
        90.0,
        ge=0,
        le=100_000,
        description="Jobs that ended longer ago and have no picture any more go; 0: none, else 2 at least.",
    )
    cleanup_max_jobs: int = Field(
        0, ge=0, description="Such jobs beyond so many go, oldest first; 0: no limit."
    )
    cleanup_usage_days: float = Field(
        400.0,
        ge=0,
        le=100_000,
        description="What was used longer ago is not told any more; 0: always, else 32 at least.",
    )
    cleanup_log_days: float = Field(
        30.0,
        ge=0,
        le=100_000,
        description="Rotated logs in FLUX_LOG_DIR older than this go; 0: none.",
    )

    @field_validator("cleanup_job_days")
    @classmethod
    def _keys_are_remembered(cls, value: float) -> float:
        if 0 < value < 2:
            raise ValueError("expected 0 or 2 and more: idempotency keys are remembered for a day")
        return value

    @field_validator("cleanup_usage_days")
    @classmethod
    def _budgets_are_counted(cls, value: float) -> float:
        if 0 < value < 32:
            raise ValueError("expected 0 or 32 and more: budgets are counted by it")
        return value


class FleetSettings(Section):
    """Of a fleet's front door and of the machines in it; a single service reads none of them."""

    fleet_precision: str = Field(
        "auto",
        description="Precision of the replicas of this machine, as the services are called; `auto`: the first of them.",
    )
    fleet_node: str = Field(
        "", description="What this machine is called in the fleet; empty: its host name."
    )
    fleet_port: int = Field(
        6380,
        ge=1024,
        le=65535,
        description="Port of the fleet's first machine that others join, Ray's own.",
    )
    fleet_join: str = Field(
        "",
        description="The first machine of the fleet, host or host:port, whose front door this is another of "
        "(`./start_fleet.sh --door --join`); empty: this is the first machine.",
    )
    fleet_token: SecretStr = Field(
        SecretStr(""),
        description="What machines show each other; empty: that in `data/fleet/token`, made at the first start.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="Where the front door keeps its jobs: the address of a PostgreSQL database, such as "
        "`postgresql://flux:PASSWORD@HOST:5432/flux`, which several front doors share; empty: a file in `data_dir`.",
    )
    fleet_object_store_mib: int = Field(
        128, ge=80, le=1_000_000, description="Memory for pictures and LoRAs on their way, MiB."
    )
    fleet_cache_gib: float = Field(
        20.0,
        gt=0,
        le=100_000,
        description="What a machine keeps of LoRAs and pictures that jobs brought, GiB.",
    )
    fleet_min_replicas: int = Field(
        0,
        ge=0,
        le=100_000,
        description="So many replicas keep their worker also when nothing waits; 0: all of them, always.",
    )
    fleet_max_replicas: int = Field(
        0, ge=0, le=100_000, description="At most so many have one at a time; 0: no limit."
    )
    fleet_idle_seconds: float = Field(
        300.0,
        gt=0,
        le=1_000_000,
        description="A replica that was idle for so long gives its worker's memory back, where fewer are needed.",
    )

    @field_validator("database_url")
    @classmethod
    def _database_is_postgres(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        schemes = ("postgresql+psycopg://", "postgresql://", "postgres://")
        if url and not url.startswith(schemes):
            raise ValueError(
                "expected the address of a PostgreSQL database, postgresql://USER:PASSWORD@HOST:5432/NAME, or nothing"
            )
        return value

    @field_validator("fleet_node")
    @classmethod
    def _node_is_a_name(cls, value: str) -> str:
        if value and not _NODE.fullmatch(value):
            raise ValueError("expected letters, digits, dots, dashes and underscores, at most 63")
        return value


SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSettings,
    "queue": QueueSettings,
    "worker": WorkerSettings,
    "models": ModelSettings,
    "storage": StorageSettings,
    "log": LogSettings,
    "cloud": CloudSettings,
    "cleanup": CleanupSettings,
    "fleet": FleetSettings,
}

# What other programs call our settings. Ours come first; an empty one is none.
OTHER_NAMES: Mapping[str, str] = {
    "SD_BFL_API_KEY": "FLUX_BFL_API_KEY",
    "SD_BFL_API_BASE": "FLUX_BFL_API_BASE",
    "SD_BFL_DEFAULT_MODEL": "FLUX_BFL_DEFAULT_MODEL",
    "SD_BFL_POLL_INTERVAL": "FLUX_BFL_POLL_INTERVAL",
    "SD_BFL_POLL_TIMEOUT": "FLUX_BFL_POLL_TIMEOUT",
    "SD_DEFAULT_BACKEND": "FLUX_DEFAULT_BACKEND",
    "SD_DEVICE": "FLUX_DEVICE",
    "SD_MODEL_ID": "FLUX_SD_MODEL_ID",
    "SD_FLUX_MODEL_ID": "FLUX_LOCAL_MODEL_ID",
    "SD_SAFETY_CHECKER": "FLUX_SAFETY_CHECKER",
    "SD_API_KEY": "FLUX_API_KEYS",
    "SD_OUTPUT_DIR": "FLUX_OUTPUT_DIR",
    "SD_MODEL_DIR": "FLUX_MODELS_DIR",
    "SD_HUGGINGFACE_TOKEN": "FLUX_HF_TOKEN",
    "SD_FLUX_DEFAULT_STEPS": "FLUX_LOCAL_STEPS",
    "SD_FLUX_DEFAULT_GUIDANCE_SCALE": "FLUX_LOCAL_GUIDANCE_SCALE",
    "SD_FLUX_MAX_IMAGE_SIZE": "FLUX_LOCAL_MAX_IMAGE_SIZE",
}
SECRETS = frozenset({"api_keys", "bfl_api_key", "hf_token", "fleet_token", "database_url"})


def leaves() -> Iterator[tuple[str, str, str]]:
    """Every leaf as (section, key, environment name)."""
    for section, model in SECTIONS.items():
        for key in model.model_fields:
            yield section, key, ENV_PREFIX + key.upper()


class Settings(BaseSettings):
    """The whole tree. Build it with `load_settings`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    server: ServerSettings = ServerSettings()
    queue: QueueSettings = QueueSettings()
    worker: WorkerSettings = WorkerSettings()
    models: ModelSettings = ModelSettings()
    storage: StorageSettings = StorageSettings()
    log: LogSettings = LogSettings()
    cloud: CloudSettings = CloudSettings()
    cleanup: CleanupSettings = CleanupSettings()
    fleet: FleetSettings = FleetSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load_settings` merges the sources itself, so that every unknown name is refused.
        return (init_settings,)


def load_settings(precision: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the tree for the service `precision` (`bf16`, `fp4`).

    Raises ConfigurationError naming the variable or the TOML key, its value and what is accepted.
    """
    if environ is None:
        environ = {**_dotenv(), **os.environ}
    toml_path = Path(environ.get("FLUX_CONFIG", ROOT / "config" / f"{precision}.toml"))
    tree = _read_toml(toml_path)
    sources = {
        (section, key): f"{toml_path.name}: {section}.{key}"
        for section in tree
        for key in tree[section]
    }
    for section, key, name, text in _from_environment(precision, environ):
        tree.setdefault(section, {})[key] = _parse(section, key, text)
        sources[section, key] = name
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, sources)) from error
    _check_keys(settings)
    return settings


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(text))
    return True


def _dotenv() -> dict[str, str]:
    path = ROOT / ".env"
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    try:
        found = dotenv_values(path)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: no UTF-8 text: {error}; save it as UTF-8") from error
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}; let the services' account read it"
        ) from error
    return {key: value for key, value in found.items() if value is not None}


def _read_toml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such file; set FLUX_CONFIG to a TOML file that exists"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}; FLUX_CONFIG takes a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error
    for section, values in tree.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise ConfigurationError(
                f"{path}: unknown section [{section}]; known are {', '.join(SECTIONS)}"
            )
        for key in values:
            known = SECTIONS[section].model_fields
            if key not in known:
                raise ConfigurationError(
                    f"{path}: unknown key {section}.{key}{_did_you_mean(key, known)}"
                )
    return tree


def _from_environment(
    precision: str, environ: Mapping[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """(section, key, variable, text) of each variable that is set; the service's port by its own name too."""
    by_name = {name: (section, key) for section, key, name in leaves()}
    port_name = f"{precision.upper()}_PORT"
    if environ.get(port_name) and "FLUX_PORT" not in environ:
        yield "server", "port", port_name, environ[port_name]
    for name, ours in OTHER_NAMES.items():
        if environ.get(name) and ours not in environ:
            yield *by_name[ours], name, environ[name]
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in ENV_RESERVED:
            continue
        if name not in by_name:
            raise ConfigurationError(
                f"{name}: no such setting{_did_you_mean(name, by_name)}; .env.example lists all of them"
            )
        section, key = by_name[name]
        yield section, key, name, environ[name]


def _parse(section: str, key: str, text: str) -> Any:
    """Lists are comma-separated in the environment; everything else pydantic reads from the text."""
    annotation = SECTIONS[section].model_fields[key].annotation
    if str(annotation).startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _explain(error: ValidationError, sources: Mapping[tuple[str, str], str]) -> str:
    lines = []
    for item in error.errors():
        section, key = str(item["loc"][0]), (str(item["loc"][1]) if len(item["loc"]) > 1 else "")
        source = sources.get((section, key), f"{section}.{key}")
        value = "(hidden)" if key in SECRETS else repr(item["input"])
        lines.append(f"{source} = {value}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _check_keys(settings: Settings) -> None:
    if not all(_KEY.fullmatch(key.get_secret_value()) for key in settings.server.api_keys):
        raise ConfigurationError(
            "FLUX_API_KEYS: a key must have 16 characters or more, letters, digits and signs without spaces"
        )


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
