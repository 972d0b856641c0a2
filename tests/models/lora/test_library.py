"""The library as a folder: what goes in, what stays out, what two of its readers see."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import InvalidRequest, NoRoom, NotFound, StorageUnavailable, TooLarge
from config.settings import ROOT
from models.lora import incoming, lookup, names
from models.lora.entry import LoraEntry
from models.lora.errors import BadLoraFile, LoraError, NotSafetensors, ReadOnlyLora
from models.lora.library import Library
from models.lora.names import HubId, clean_filename, distinct, hub_id, name_of
from tests.lora_files import EMBEDDED, FLUX2, lora

NOW = "2026-11-26T12:00:00.000Z"
MAX_BYTES = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "loras"


@pytest.fixture
def builtin(tmp_path: Path) -> Path:
    path = tmp_path / "builtin"
    path.mkdir()
    return path


@pytest.fixture
def opened(folder: Path, builtin: Path) -> Callable[[], Library]:
    """Opens the library as another service of the machine does."""

    def opened() -> Library:
        library = Library(folder, builtin, max_bytes=MAX_BYTES, now=lambda: NOW)
        library.refresh()
        return library

    return opened


@pytest.fixture
def library(opened: Callable[[], Library]) -> Library:
    return opened()


def add(
    library: Library, data: bytes, filename: str = "Sketch.safetensors", hub_id: str | None = None
) -> tuple[LoraEntry, bool]:
    with library.incoming(reserve_bytes=0, expected_bytes=len(data)) as file:
        for start in range(0, len(data), 1000):
            file.write(data[start : start + 1000])
        return library.add(file, filename, source="upload", hub_id=hub_id)


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Putting in


def test_add_file_lies_under_the_hash_of_its_content(library: Library, folder: Path) -> None:
    data = lora(metadata={"modelspec.trigger_phrase": "sk3tch"})
    entry, is_new = add(library, data)
    assert is_new and entry.sha256 == sha256(data)
    assert files(folder) == {f"{entry.sha256}.safetensors", f"{entry.sha256}.json"}
    assert entry.path.read_bytes() == data
    assert (entry.name, entry.filename) == ("sketch", "Sketch.safetensors")
    assert (entry.trigger_words, entry.created_at) == (("sk3tch",), NOW)
    assert entry.info.base.name == "FLUX.1" and entry.info.ranks == (1,)


def test_add_same_content_is_the_same_entry(library: Library, folder: Path) -> None:
    first, _ = add(library, lora())
    second, is_new = add(library, lora(), "another name.safetensors")
    assert (second, is_new) == (first, False)
    assert len(files(folder)) == 2


def test_add_other_content_under_a_name_gets_a_number(library: Library) -> None:
    assert [add(library, lora(n))[0].name for n in range(3)] == ["sketch", "sketch-2", "sketch-3"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"PK\3\4" + b"\0" * 200, NotSafetensors),
        (lora()[:-2], BadLoraFile),
        (lora(float("nan")), BadLoraFile),
        (lora(float("inf")), BadLoraFile),
        (lora(parts=("lora_down.weight", "lora_sideways.weight")), BadLoraFile),
    ],
    ids=["zip", "cut", "nan", "inf", "half a module"],
)
def test_add_what_fails_a_check_leaves_nothing(
    library: Library, folder: Path, data: bytes, error: type[LoraError]
) -> None:
    with pytest.raises(error):
        add(library, data)
    assert files(folder) == set() and library.entries() == []


def test_add_that_the_facts_cannot_follow_leaves_nothing(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(NoRoom):
        add(library, lora())
    assert files(folder) == set() and library.entries() == []


def test_incoming_over_the_limit_is_refused_at_its_first_byte_too_many(library: Library) -> None:
    with library.incoming(reserve_bytes=0) as file:
        file.write(lora().ljust(MAX_BYTES))
        with pytest.raises(TooLarge, match="FLUX_MAX_LORA_BYTES"):
            file.write(b"x")


def test_incoming_of_a_declared_size_over_the_limit_is_not_begun(
    library: Library, folder: Path
) -> None:
    with pytest.raises(TooLarge):
        library.incoming(reserve_bytes=0, expected_bytes=MAX_BYTES + 1)
    assert not folder.exists()


def test_incoming_without_room_is_refused_before_it_begins(library: Library, folder: Path) -> None:
    with pytest.raises(NoRoom, match="FLUX_MIN_FREE_MIB") as caught:
        library.incoming(reserve_bytes=2**60, expected_bytes=1)
    assert caught.value.status == 507
    assert files(folder) == set()


def test_incoming_into_what_is_no_folder_names_the_setting(library: Library, folder: Path) -> None:
    folder.write_text("in the way")
    with pytest.raises(StorageUnavailable, match="FLUX_LORA_DIR"):
        library.incoming(reserve_bytes=0)


def test_incoming_of_a_pickle_is_refused_by_its_first_bytes(library: Library) -> None:
    with library.incoming(reserve_bytes=0) as file, pytest.raises(NotSafetensors, match="pickle"):
        file.write(b"\x80\x04" + b"x" * 100)


def test_sweep_removes_what_a_dead_process_left_and_nothing_else(
    library: Library, folder: Path
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from models.lora.incoming import Incoming;"
        "file = Incoming(Path(sys.argv[1]), max_bytes=10, reserve_bytes=0); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    assert len(files(folder)) == 1
    with library.incoming(reserve_bytes=0) as alive:
        incoming.sweep(folder)
        assert files(folder) == {str(alive.path.relative_to(folder))}


def test_sweep_leaves_a_pipe_and_does_not_wait_at_it(folder: Path) -> None:
    (folder / incoming.FOLDER).mkdir(parents=True)
    pipe = folder / incoming.FOLDER / f"x{incoming.SUFFIX}"
    os.mkfifo(pipe)
    incoming.sweep(folder)
    assert pipe.is_fifo()


def test_sweep_removes_facts_without_a_lora_and_halves_of_them(
    library: Library, folder: Path
) -> None:
    entry, _ = add(library, lora(1.0))
    gone, _ = add(library, lora(2.0))
    gone.path.unlink()  # as a crash in the middle of a deletion
    (folder / ".0123456789abcdef.json").write_text("{")
    library.sweep()
    assert files(folder) == {f"{entry.sha256}.safetensors", f"{entry.sha256}.json"}


def test_sweep_of_no_folder_makes_none(library: Library, folder: Path) -> None:
    library.sweep()
    assert not folder.exists()


# What others see


def test_refresh_shows_what_another_service_was_given(
    library: Library, opened: Callable[[], Library]
) -> None:
    entry, _ = add(opened(), lora())
    library.refresh()
    assert library.entries() == [entry]


def test_refresh_forgets_what_another_service_deleted(
    library: Library, opened: Callable[[], Library]
) -> None:
    entry, _ = add(library, lora())
    time.sleep(0.15)  # the folder has settled
    library.refresh()
    opened().remove(entry.sha256)
    library.refresh()
    assert library.entries() == []


def test_refresh_of_a_folder_that_did_not_change_reads_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(library, lora())
    time.sleep(0.15)
    library.refresh()

    def scanned(*_: object) -> None:
        raise AssertionError("the folder was read")

    monkeypatch.setattr(os, "scandir", scanned)
    library.refresh()


def test_two_services_that_take_one_name_at_once_give_two_names(
    opened: Callable[[], Library],
) -> None:
    services = [opened() for _ in range(4)]
    threads = [
        threading.Thread(target=add, args=(service, lora(number)))
        for number, service in enumerate(services)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = opened().entries()
    assert {entry.name for entry in seen} == {"sketch", "sketch-2", "sketch-3", "sketch-4"}


# Files somebody copied into the folder


def test_copied_file_is_taken_in_under_its_stem(library: Library, folder: Path) -> None:
    folder.mkdir()
    (folder / "Old Ink.safetensors").write_bytes(lora())
    library.refresh()
    (entry,) = library.entries()
    assert (entry.name, entry.filename, entry.source) == (
        "old-ink",
        "Old Ink.safetensors",
        "folder",
    )
    assert files(folder) == {f"{entry.sha256}.safetensors", f"{entry.sha256}.json"}


def test_copied_file_that_is_bad_stays_and_is_named_in_the_log_once(
    library: Library, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    (folder / "bad.safetensors").write_bytes(lora(float("nan")))
    for _ in range(3):
        library.refresh()
    assert library.entries() == [] and files(folder) == {"bad.safetensors"}
    assert [record.message for record in caplog.records if "bad.safetensors" in record.message] == [
        "'bad.safetensors' in the LoRA folder is not used: tensor "
        "'lora_unet_single_blocks_0_linear2.lora_down.weight' has a NaN or an infinity"
    ]


def test_copied_file_is_taken_in_when_its_copy_is_whole(library: Library, folder: Path) -> None:
    folder.mkdir()
    data = lora()
    with open(folder / "a.safetensors", "wb") as file:
        file.write(data[:100])
        file.flush()
        library.refresh()
        assert library.entries() == []
        file.write(data[100:])
    library.refresh()
    assert [entry.name for entry in library.entries()] == ["a"]


def test_copied_file_of_known_content_is_removed(library: Library, folder: Path) -> None:
    entry, _ = add(library, lora())
    (folder / "copy.safetensors").write_bytes(lora())
    library.refresh()
    assert library.entries() == [entry]
    assert "copy.safetensors" not in files(folder)


def test_copied_link_is_not_followed(library: Library, folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(lora())
    (folder / "a.safetensors").symlink_to(tmp_path / "outside.safetensors")
    library.refresh()
    assert library.entries() == []


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", '{"version": 1}', '{"version": 99}', "[" * 10000]
)
def test_lora_whose_facts_are_lost_is_taken_in_anew(
    library: Library, opened: Callable[[], Library], broken: str
) -> None:
    entry, _ = add(library, lora())
    entry.path.with_suffix(".json").write_text(broken)
    (again,) = opened().entries()
    assert again.sha256 == entry.sha256 and again.info == entry.info


def test_lora_that_was_exchanged_under_its_name_is_not_what_its_name_says(
    library: Library, opened: Callable[[], Library]
) -> None:
    entry, _ = add(library, lora(1.0))
    entry.path.write_bytes(lora(2.0, {"lora_unet_single_blocks_1_linear2_": (192, 960)}))
    seen = opened().entries()
    assert sha256(lora(1.0)) not in {each.sha256 for each in seen}


# Those that ship with the project


def test_builtin_is_listed_first_and_cannot_be_changed(
    builtin: Path, opened: Callable[[], Library]
) -> None:
    (builtin / "pencil.safetensors").write_bytes(lora(3.0))
    library = opened()
    add(library, lora())
    first = library.entries()[0]
    assert (first.name, first.is_builtin) == ("pencil", True)
    for change in (library.remove, lambda sha: library.change(sha, name="x")):
        with pytest.raises(ReadOnlyLora, match="ships with the project"):
            change(first.sha256)
    assert (builtin / "pencil.safetensors").exists()


def test_builtin_uploaded_again_is_the_builtin(
    builtin: Path, opened: Callable[[], Library], folder: Path
) -> None:
    (builtin / "pencil.safetensors").write_bytes(lora(3.0))
    entry, is_new = add(opened(), lora(3.0))
    assert (entry.name, is_new) == ("pencil", False)
    assert files(folder) == set()


# Changing and taking out


def test_change_is_kept(library: Library, opened: Callable[[], Library]) -> None:
    entry, _ = add(library, lora())
    library.change(entry.sha256, name="ink", trigger_words=["a", "b"])
    (seen,) = opened().entries()
    assert (seen.name, seen.trigger_words, seen.filename) == ("ink", ("a", "b"), entry.filename)


def test_change_to_a_taken_name_is_refused(library: Library) -> None:
    first, _ = add(library, lora(1.0), "a.safetensors")
    add(library, lora(2.0), "b.safetensors")
    with pytest.raises(InvalidRequest, match="another LoRA's"):
        library.change(first.sha256, name="b")


def test_remove_leaves_nothing(library: Library, folder: Path) -> None:
    entry, _ = add(library, lora())
    library.remove(entry.sha256)
    assert files(folder) == set() and library.by_sha256(entry.sha256) is None
    with pytest.raises(NotFound):
        library.remove(entry.sha256)


# Which one a text means


@pytest.fixture
def three(library: Library) -> Library:
    add(library, lora(1.0), "Sketch.safetensors")
    add(library, lora(2.0), "Sketch.safetensors")
    add(library, lora(3.0), "Ink Wash.safetensors", hub_id="someone/inks/wash/ink.safetensors")
    return library


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sketch", "sketch"), ("sketch-2", "sketch-2"), ("ink-wash", "ink-wash"),
        ("Ink Wash.safetensors", "ink-wash"), ("ink wash.SAFETENSORS", "ink-wash"),
        ("Ink Wash", "ink-wash"), (f"{sha256(lora(2.0))}.safetensors", "sketch-2"),
        ("someone/inks", "ink-wash"), ("someone/inks/wash/ink.safetensors", "ink-wash"),
    ],
)  # fmt: skip
def test_find_by_any_of_its_names(three: Library, text: str, name: str) -> None:
    assert lookup.find(text, three.entries()).name == name


@pytest.mark.parametrize(
    "text",
    [
        "ink", "someone/ink", "someone/inks/other.safetensors", "x" * 400, "a.safetensors",
        "../sketch", "/sketch", "..\\sketch", "http://sketch",
    ],
)  # fmt: skip
def test_find_unknown_is_not_found(three: Library, text: str) -> None:
    with pytest.raises(NotFound):
        lookup.find(text, three.entries())


def test_find_unknown_names_what_is_near(three: Library) -> None:
    with pytest.raises(NotFound, match="did you mean sketch"):
        lookup.find("skech", three.entries())


def test_find_file_name_of_two_asks_which(three: Library) -> None:
    with pytest.raises(InvalidRequest, match="sketch, sketch-2"):
        lookup.find("Sketch.safetensors", three.entries())


# Names


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("Sketch.safetensors", "sketch"), ("My  LoRA (v2.1).safetensors", "my-lora-v2-1"),
        ("Füße.safetensors", "fusse"), ("🎨.safetensors", "lora"), (".safetensors", "lora"),
        ("..safetensors", "lora"), ("CON.safetensors", "con"), ("a" * 200 + ".safetensors", "a" * 64),
        ("--_x_--.safetensors", "x"), ("立方体.safetensors", "lora"),
    ],
)  # fmt: skip
def test_name_of_a_file(filename: str, name: str) -> None:
    assert name_of(filename) == name


@given(st.text(max_size=300))
def test_name_of_anything_is_a_name(text: str) -> None:
    assert names.NAME.fullmatch(name_of(text))
    assert names.NAME.fullmatch(distinct(name_of(text), {name_of(text)}))


@given(st.text(max_size=300).map(lambda text: f"{text}.safetensors"))
def test_clean_filename_has_no_folder_and_no_control_character(text: str) -> None:
    try:
        cleaned = clean_filename(text)
    except InvalidRequest:
        return
    assert cleaned.isprintable() and not set(cleaned) & {"/", "\\", "\0"} and len(cleaned) <= 255


def test_clean_filename_has_one_form_of_unicode() -> None:
    assert clean_filename("Cafe\u0301.safetensors") == clean_filename("Caf\u00e9.safetensors")


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a", "a.safetensors.pt", "", ".."])
def test_clean_filename_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(NotSafetensors, match="safetensors"):
        clean_filename(name)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("owner/repo", HubId("owner/repo")),
        ("XLabs-AI/flux-lora.v1_b", HubId("XLabs-AI/flux-lora.v1_b")),
        ("o/r/f.safetensors", HubId("o/r", "f.safetensors")),
        ("o/r/a/b/f.safetensors", HubId("o/r", "a/b/f.safetensors")),
    ],
)
def test_hub_id_is_read(text: str, wanted: HubId) -> None:
    assert hub_id(text) == wanted and str(wanted) == text


@pytest.mark.parametrize(
    "text",
    [
        "repo", "/repo", "owner/", "/owner/repo", "owner/repo/", "../repo", "owner/..", "owner/re..po",
        "https://huggingface.co/owner/repo", "owner/repo/file.bin", "owner/repo/../x.safetensors",
        "owner//x.safetensors", "owner/repo/.hidden.safetensors", "owner/re po", "owner/repo@main",
        "owner/repo?x", "owner/repo#x", "owner\\repo", "o/" + "r" * 100, "a/b/c/d/e/f/g.safetensors",
        "owner/x.safetensors", "owner/repo\n", "öwner/repo", "",
    ],
)  # fmt: skip
def test_hub_id_is_no_address_and_no_path(text: str) -> None:
    assert hub_id(text) is None


def test_library_imports_no_torch() -> None:
    code = "import sys, models.lora.library; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_entry_is_itself_after_a_round_trip(library: Library) -> None:
    entry, _ = add(library, lora(0.5, {**EMBEDDED, **FLUX2}))
    stored = json.loads(json.dumps(entry.to_json()))
    assert LoraEntry.from_json(stored, entry.path) == entry
