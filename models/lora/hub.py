"""LoRAs on the Hugging Face Hub: which file an id means, and its bytes. Through huggingface_hub.

The library is imported at the first call, because most services never fetch; it imports no torch. Where
the Hub is (`HF_ENDPOINT`) and the operator's token (`HF_TOKEN`) are its own settings. A client gives an
id (`names.hub_id`), never an address. What is used of it here is alike in 0.36, which the environment
with nunchaku has, and in 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from config.errors import FluxError, InvalidRequest, NotFound, Unavailable
from models.lora.incoming import Incoming
from models.lora.names import SUFFIX, HubId, hub_id

_MAX_NAMED = 10
_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file at one commit."""

    id: HubId
    revision: str
    size_bytes: int


def locate(wanted: HubId) -> HubFile:
    """The file an id means. Raises FluxError when there is none, or several, or no way to ask."""
    from huggingface_hub import HfApi

    with _in_our_words(wanted):
        found = HfApi().model_info(wanted.repo, files_metadata=True)
    sizes = {each.rfilename: each.size for each in found.siblings or ()}
    files = sorted(name for name in sizes if name.endswith(SUFFIX))
    if wanted.file is not None:
        files = [name for name in files if name == wanted.file]
    if not files:
        there = f"{wanted.file} is not in it" if wanted.file else f"it has no {SUFFIX} file"
        raise NotFound(f"{wanted.repo} on the Hugging Face Hub: {there}")
    if len(files) > 1:
        some = ", ".join(f"{wanted.repo}/{name}" for name in files[:_MAX_NAMED])
        more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
        raise InvalidRequest(f"{wanted.repo} has several files; send one of {some}{more}")
    exact = hub_id(f"{wanted.repo}/{files[0]}")
    if exact is None:
        raise NotFound(f"{wanted.repo}: its file is named as no LoRA may be: {files[0][:100]!a}")
    return HubFile(id=exact, revision=found.sha or "main", size_bytes=sizes[files[0]] or 0)


def fetch(found: HubFile, into: Incoming) -> None:
    """Write the file's bytes. Raises FluxError."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()
    url = hf_hub_url(found.id.repo, found.id.file, revision=found.revision)
    with _in_our_words(found.id):
        http_get(url, into, headers=build_hf_headers(), expected_size=found.size_bytes or None)


@contextmanager
def _in_our_words(wanted: HubId) -> Iterator[None]:
    """Errors of huggingface_hub and of its HTTP client as ours."""
    import httpx2
    from huggingface_hub import errors

    where = f"{wanted} on the Hugging Face Hub"
    try:
        yield
    except FluxError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise Unavailable(f"{where} cannot be fetched: HF_HUB_OFFLINE is set") from error
    except errors.GatedRepoError as error:
        raise NotFound(
            f"{where} is gated: accept its licence there and give the service your HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise NotFound(f"{where} does not exist, or is private (HF_TOKEN)") from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Unavailable(
            f"{where} could not be fetched: {first[:200]}", retry_after_seconds=_RETRY_SECONDS
        ) from error
