"""What a worker process is told when it is started: one JSON argument."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`loader` is `module:function`; `socket_fd` the number of the inherited socket."""

    socket_fd: int
    name: str
    precision: str
    loader: str
    output_dir: Path
    models_dir: Path
    loras_dir: Path
    inputs_dir: Path
    allow_download: bool
    reserve_bytes: int  # of the disk, which fetched models leave free
    device: str  # "cuda", "mps" or "cpu"
    model_memory_gib: float | None  # None: by the device
    offload: str  # as ModelSettings has it
    safety_checker: str  # the same
    safety_model: str
    is_looked_at: bool  # what it draws: without a checker it draws nothing
    engine: str
    fp8_weights: str
    compile: str
    mflux_quantize: int
    threads: int
    devices: int  # how many the model is spread over; 1 but in split mode
    log_level: str
    max_batch_size: int  # pictures drawn together; 0: as many as is good where it changes no bit
    default_model: str
    default_model_reason: str

    def to_argument(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_argument(cls, argument: str) -> "WorkerConfig":
        values = json.loads(argument)
        for folder in ("output_dir", "models_dir", "loras_dir", "inputs_dir"):
            values[folder] = Path(values[folder])
        return cls(**values)
