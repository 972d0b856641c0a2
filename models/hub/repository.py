"""A model's repository on the Hugging Face Hub: its files at one commit, and which of them a model needs.

Where the Hub is (`HF_ENDPOINT`) and the operator's token (`HF_TOKEN`) are huggingface_hub's settings;
the library is imported at the first call and imports no torch. What is used of it is alike in 0.36,
which the environment with nunchaku has, and in 2.4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from config.errors import FluxError, ModelUnavailable

INDEX = "model_index.json"
ASK_TIMEOUT_SECONDS = 30.0
# Weights of one variant: safetensors, whole or in numbered parts. `model.fp16.safetensors` is another
# variant of them, `flux1-dev.safetensors` beside the folders the same weights once more.
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors")
# Indexes of the variants: `model.safetensors.index.fp16.json`.
_OTHER_INDEX = re.compile(r".*\.index\.[^.]+\.json|.*\.(bin|msgpack|h5|onnx)\.index\.json")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WORDS = (".json", ".txt", ".model", ".jinja")  # configurations and vocabularies
_ANY_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """One file at one commit. Large files have a SHA-256, the others git's SHA-1 of a blob."""

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str

    @property
    def digest(self) -> str:
        """What the Hub's cache calls its bytes."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    id: str  # owner/name
    commit: str
    files: tuple[RepoFile, ...]

    def file(self, path: str) -> RepoFile | None:
        return next((file for file in self.files if file.path == path), None)


def ask(repo: str) -> Repository:
    """What the Hub has of a repository. Raises ModelUnavailable, saying why it cannot be known."""
    from huggingface_hub import HfApi

    with in_our_words(repo):
        found = HfApi(token=token()).model_info(
            repo, files_metadata=True, timeout=ASK_TIMEOUT_SECONDS
        )
    files = tuple(sorted(_files(repo, found.siblings or ()), key=lambda file: file.path))
    if not found.sha or not files:
        raise ModelUnavailable(f"{repo} on the Hugging Face Hub has no files")
    return Repository(id=repo, commit=found.sha, files=files)


def _files(repo: str, siblings: Iterable[Any]) -> Iterator[RepoFile]:
    for each in siblings:
        lfs = each.lfs
        if each.size is None or not _is_plain(each.rfilename):
            continue
        # Its name in the cache; a Hub that says something else is none.
        if not _DIGEST.fullmatch((each.blob_id if lfs is None else lfs.sha256) or ""):
            raise ModelUnavailable(f"{repo}: the Hub tells no checksum of {each.rfilename}")
        yield RepoFile(
            path=each.rfilename,
            size_bytes=each.size if lfs is None else lfs.size,
            sha256=None if lfs is None else lfs.sha256,
            git_sha1=each.blob_id or "",
        )


def _is_plain(path: str) -> bool:
    """Whether a name from the Hub stays in its folder."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path


def select(
    repository: Repository, index: Mapping[str, Any] | None, without: Collection[str] = ()
) -> list[RepoFile]:
    """The files that a model needs, each once.

    `index` is the pipeline's model_index.json: of each part it names (but those in `without`) the
    configurations and the safetensors weights. Without one the repository is one network by itself.
    Raises ModelUnavailable where a part has no safetensors weights.
    """
    if index is None:
        return _part(repository, "", is_alone=True)
    chosen = [file for file in repository.files if file.path == INDEX]
    for name in parts_of(index):
        if name not in without:
            chosen += _part(repository, name)
    return chosen


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts of a pipeline that are there: of a class, not null."""
    return [
        name
        for name, kind in index.items()
        if not name.startswith("_") and isinstance(kind, list) and len(kind) == 2 and kind[1]
    ]


def _part(repository: Repository, folder: str, *, is_alone: bool = False) -> list[RepoFile]:
    """The files of one folder, not of those below it."""
    prefix = f"{folder}/" if folder else ""
    here = [
        (file, file.path.removeprefix(prefix))
        for file in repository.files
        if file.path.startswith(prefix) and "/" not in file.path.removeprefix(prefix)
    ]
    weights = [file for file, name in here if _WEIGHTS.fullmatch(name)]
    others = [name for _, name in here if name.endswith(_ANY_WEIGHTS)]
    if not weights and (others or is_alone):
        where = f"{repository.id}: {folder}" if folder else repository.id
        raise ModelUnavailable(
            f"{where} has no safetensors weights that could be loaded; it has "
            f"{', '.join(sorted(others)[:5]) or 'no weights at all'}"
        )
    words = [
        file for file, name in here if name.endswith(_WORDS) and not _OTHER_INDEX.fullmatch(name)
    ]
    return words + weights


def token() -> str | None:
    """The operator's token, by its name here or elsewhere; None: what `hf auth login` has left."""
    return os.environ.get("HF_TOKEN") or os.environ.get("SD_HUGGINGFACE_TOKEN") or None


@contextmanager
def in_our_words(repo: str) -> Iterator[None]:
    """Errors of huggingface_hub and of its HTTP client as ours."""
    import httpx2
    from huggingface_hub import errors

    where = f"{repo} on the Hugging Face Hub"
    try:
        yield
    except FluxError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise ModelUnavailable(f"{where} cannot be asked: HF_HUB_OFFLINE is set") from error
    except errors.GatedRepoError as error:
        raise gated(repo) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"{where} does not exist, or is private: set HF_TOKEN to a token that may read it"
        ) from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise ModelUnavailable(
            f"{where} cannot be reached: {first_line(error)}; check the network, or run offline with "
            "models that are here"
        ) from error


def gated(repo: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{repo} is gated: accept its licence at https://huggingface.co/{repo} with your account, make a "
        "token that may read it at https://huggingface.co/settings/tokens, and set HF_TOKEN to it"
    )


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__
