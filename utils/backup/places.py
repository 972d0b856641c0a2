"""Where the services of a machine keep what a backup holds, by their settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from config.settings import ROOT, Settings, load_settings
from models.precision import known_precisions
from utils.backup.manifest import DATA, IMAGES, LORAS, BackupError
from utils.lora_pins import pins_folder

ENV_FILE = ".env"
_FOLDER_OF: Mapping[str, Callable[[Settings], Path]] = {
    DATA: lambda settings: settings.storage.data_dir,
    LORAS: lambda settings: settings.storage.lora_dir,
    IMAGES: lambda settings: settings.storage.output_dir,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The settings of every service. `root` is the project's, where .env and config/ are."""

    settings: Mapping[str, Settings]
    environ: Mapping[str, str]
    root: Path = ROOT

    @classmethod
    def of(cls, environ: Mapping[str, str], root: Path = ROOT) -> Places:
        """Raises ConfigurationError."""
        settings = {name: load_settings(name, environ) for name in known_precisions()}
        return cls(settings=settings, environ=environ, root=root)

    @classmethod
    def of_this_machine(cls) -> Places:
        return cls.of({**dotenv(ROOT / ENV_FILE), **os.environ})

    def folder(self, kind: str, service: str) -> Path:
        return _FOLDER_OF[kind](self.settings[service])

    def folders(self, kind: str) -> dict[Path, tuple[str, ...]]:
        """The folders of a kind, each with the services that share it."""
        found: dict[Path, list[str]] = {}
        for service in self.settings:
            found.setdefault(self.folder(kind, service).resolve(), []).append(service)
        return {folder: tuple(services) for folder, services in found.items()}

    def pins(self, service: str) -> Path:
        storage = self.settings[service].storage
        return pins_folder(storage.lora_dir, service, storage.data_dir)

    def settings_files(self) -> dict[str, Path]:
        """By their names in a backup: .env, and each service's TOML."""
        files = {ENV_FILE: self.root / ENV_FILE}
        for service in self.settings:
            own = self.root / "config" / f"{service}.toml"
            files[f"{service}.toml"] = Path(self.environ.get("FLUX_CONFIG") or own)
        return files

    def one_folder(self, kind: str, services: tuple[str, ...]) -> Path:
        """Where these services keep what one folder of a backup holds. Raises BackupError where they differ."""
        known = [service for service in services if service in self.settings]
        found = {self.folder(kind, service).resolve() for service in known}
        if len(found) != 1:
            shown = ", ".join(map(str, sorted(found))) or "nowhere"
            raise BackupError(
                f"the backup has one folder of {kind} for {', '.join(services)}, and the settings have {shown}; "
                "set them to one folder, then restore again"
            )
        return found.pop()


def dotenv(path: Path) -> dict[str, str]:
    """What a .env file sets; nothing where there is none."""
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return {name: value for name, value in dotenv_values(path).items() if value is not None}
