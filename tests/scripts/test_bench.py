"""`python -m scripts.bench`: which parts run, what it says of those that cannot, what it writes, what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from config.settings import ROOT
from scripts.bench import __main__ as bench
from scripts.bench import document, gpu_meter, gpu_service, needs, rivals, running
from scripts.bench.comparison import Comparison, in_turns, verdicts
from scripts.bench.parts import PARTS, Part

PAGE = "before\n\n<!-- figures: png -->\n\nold\n\n<!-- end: png -->\n\nafter\n"


def part(code: str, tmp_path: Path, **more: object) -> Part:
    """A part that is this Python."""
    (tmp_path / "bench_part.py").write_text(code)
    values = {"name": "made", "about": "made up", "module": "bench_part", "deadline_seconds": 60}
    return Part(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command on parts that a test makes; their modules are found in `tmp_path`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        running, "adopt_orphans", lambda: None
    )  # pytest keeps no strangers' orphans

    def run(*parts: Part, options: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr(bench, "PARTS", {each.name: each for each in parts})
        before = signal.getsignal(signal.SIGTERM)
        try:
            return bench.main(options)
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


# Which parts


def test_list_names_every_part_and_runs_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PARTS)


@pytest.mark.parametrize("arguments", [["--only", "pgn"], ["--only", ""], ["--quick", "--write"]])
def test_wrong_options_are_refused_before_anything_runs(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert "png" in capsys.readouterr().err or "--write" in arguments


def test_every_part_is_a_module_that_takes_its_arguments() -> None:
    for each in PARTS.values():
        path = ROOT / (each.module.replace(".", "/") + ".py")
        text = path.read_text(encoding="utf-8")
        words = [*each.arguments, *(each.quick or ()), *each.writes]
        for flag in {word for word in words if word.startswith("--")}:
            assert f'"{flag}"' in text, (each.name, flag)


def test_parts_asked_for_by_name_do_not_run_by_themselves() -> None:
    by_themselves = bench._wanted(bench._options([]))
    assert not [each.name for each in by_themselves if each.by_name]
    (named,) = bench._wanted(bench._options(["--only", "fleet,fleet"]))
    assert named.name == "fleet"


# What it says


def test_part_that_fails_is_named_and_the_others_still_run(
    only, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = part("raise SystemExit('the disk is full')", tmp_path, name="fails")
    (tmp_path / "works.py").write_text("print('time: 3 ms')")
    works = Part(name="works", about="", module="works", deadline_seconds=60)
    assert only(fails, works) == 1
    said = capsys.readouterr()
    assert "fails failed: the disk is full" in said.err
    assert "| works |" in said.out and "done" in said.out.splitlines()[-3]


def test_part_that_lacks_something_is_named_with_what_to_do_and_is_no_failure(
    only, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks = needs.program("no-such-program-at-all", "no-such-package")
    assert only(part("print('time: 3 ms')", tmp_path, needs=(lacks,))) == 0
    said = capsys.readouterr().out
    assert "not run: no-such-program-at-all is not installed (Debian: apt install no-such" in said
    assert "3 ms" not in said


def test_part_that_prints_no_figures_has_failed(only, tmp_path: Path) -> None:
    assert only(part("print('hello')", tmp_path)) == 1


def test_part_asks_services_that_want_no_key(
    only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLUX_API_KEYS", "key-of-somebody-0123456789")
    code = "from config.settings import load_settings; print('keys:', len(load_settings('bf16').server.api_keys))"
    assert only(part(code, tmp_path)) == 0
    assert "keys: 0" in capsys.readouterr().out


def test_rows_short_of_what_is_wanted_are_listed(
    only, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (
        "| ok | 1 | 2 | 2.00 (1.9 to 2.1) | ≥ 1.3 |\\n| late | 1 | 2 | 1.20 (1.1 to 1.4) | ≥ 1.3 |"
    )
    assert only(part(f"print('{rows}')", tmp_path)) == 0
    end = capsys.readouterr().out.partition("short of what is wanted:")[2]
    assert "late" in end and "ok" not in end


def test_missing_rival_names_the_package_and_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(rivals.MissingRival, match=r"huey==.*python -m scripts\.bench\.rivals submits"):  # fmt: skip
        rivals.python("submits", tmp_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rivals") / "venv"
    rivals._make(made)
    return made


def test_rival_that_cannot_be_fetched_says_what_pip_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "PACKAGES", {"submits": ("huey==3.5.4",)})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(rivals.MissingRival, match="huey==3.5.4 could not be installed: .*huey"):
        rivals.install("submits", home)


def test_rivals_see_our_packages_and_we_do_not_see_theirs(home: Path) -> None:
    (rivals.site(home) / "only_a_rivals.py").write_text("")
    code = "import fastapi, only_a_rivals, sys; print(fastapi.__file__)"
    seen = subprocess.run([rivals._python(home), "-c", code], capture_output=True, text=True)
    import fastapi

    assert seen.stdout.strip() == fastapi.__file__, seen.stderr
    with pytest.raises(ImportError):
        __import__("only_a_rivals")


# What it writes


def test_figures_are_written_once_and_stay_as_they_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert document.write("png", "| new |", page)
    first = page.read_text()
    assert first == PAGE.replace("old", "| new |")
    assert not document.write("png", "| new |\n", page) and page.read_text() == first
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    "text",
    [
        "no place",
        PAGE + PAGE,
        PAGE.replace("end", "and"),
        "<!-- end: png --> <!-- figures: png -->",
    ],
)
def test_page_without_one_place_is_left_alone(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(document.NoPlace, match="page.md must have <!-- figures: png -->"):
        document.write("png", "| new |", page)
    assert page.read_text() == text


def test_page_has_a_place_for_every_part_that_does_not_write_itself() -> None:
    text = document.PAGE.read_text(encoding="utf-8")
    for name in (bench.OVERVIEW, *(p.name for p in PARTS.values() if not p.writes)):
        start, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
        assert text.count(start) == text.count(end) == 1, name
        assert text.index(start) < text.index(end)


def test_figures_are_tables_as_they_are_and_what_was_not_run() -> None:
    output = "machine: 2 cores\n\n| a | b |\n|---|---|\nnot run: Ray: not there\n| 1 | 2 |\n\n| c |\n|---|\n| 3 |\n"
    assert document.figures(output) == (
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n| c |\n|---|\n| 3 |\n\nNot run: Ray: not there."
    )


def test_figures_of_lines_are_rows() -> None:
    assert document.figures("x86_64, 2 cores\nstart: 0.6 s\nodd: words\n") == "| | |\n|---|---|\n| start | 0.6 s |"  # fmt: skip
    assert document.figures("nothing here\n") == ""


def test_failed_part_leaves_the_figures_that_are_there(
    only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr(document.write, "__defaults__", (page,))
    some = ("--only", "png", "--write")
    code = "print('| half |'); raise SystemExit('gone')"
    assert only(part(code, tmp_path, name="png"), options=some) == 1
    assert page.read_text() == PAGE
    assert only(part("print('| whole |')", tmp_path, name="png"), options=some) == 0
    assert "| whole |" in page.read_text() and "cores" in page.read_text()


def test_figures_without_a_place_are_a_failure(
    only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setattr(document.write, "__defaults__", (page,))
    assert only(part("print('| whole |')", tmp_path), options=("--only", "made", "--write")) == 1
    assert "made failed: not written: page.md must have" in capsys.readouterr().err


def test_run_of_some_parts_leaves_the_list_of_a_whole_run(
    only, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE + "<!-- figures: all -->\nan older run\n<!-- end: all -->\n")
    monkeypatch.setattr(document.write, "__defaults__", (page,))
    made = part("print('| whole |')", tmp_path, name="png")
    assert only(made, options=("--only", "png", "--write")) == 0
    assert "an older run" in page.read_text()
    assert only(made, options=("--write",)) == 0
    assert "an older run" not in page.read_text() and "| png | made up |" in page.read_text()


# What it leaves

STAYS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, os.environ["TMPDIR"], flush=True)
{then}
"""


# A part's time is counted from its first words on: how long a Python takes to start is the machine's affair.
RUNS = """
import subprocess, sys, threading
from scripts.bench import running
begun = threading.Event()
class Begun(subprocess.Popen):
    def wait(self, timeout=None):
        begun.wait()
        return super().wait(timeout)
def say(line):
    print(line)
    begun.set()
subprocess.Popen = Begun
running.adopt_orphans()
outcome = running.run(sys.argv[1:2], deadline_seconds=float(sys.argv[2]), say=say)
print("outcome:", outcome.failure)
"""


@pytest.mark.parametrize(
    ("then", "deadline", "failure"),
    [("time.sleep(600)", 0.5, "it was not done after 0.5 s and was ended"), ("", 60, "None")],
    ids=["late", "ends"],
)
def test_part_leaves_no_process_and_no_folder(
    then: str, deadline: float, failure: str, tmp_path: Path
) -> None:
    (tmp_path / "stays.py").write_text(STAYS.format(then=then))
    command = [sys.executable, "-c", RUNS, str(tmp_path / "stays.py"), str(deadline)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    began, outcome = done.stdout.splitlines()
    pid, folder = began.split()
    assert outcome == f"outcome: {failure}", done.stderr
    assert not psutil.pid_exists(int(pid)) and not Path(folder).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_process_and_no_folder(number: int, tmp_path: Path) -> None:
    (tmp_path / "stays.py").write_text(STAYS.format(then="time.sleep(600)"))
    code = (
        "import sys; from scripts.bench import __main__ as bench; from scripts.bench.parts import Part\n"
        "bench.PARTS = {'stays': Part(name='stays', about='', module='stays', deadline_seconds=600)}\n"
        "sys.exit(bench.main(['--only', 'stays']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line[0].isdigit() and str(tmp_path.anchor) in line and "bench" in line:
            pid, folder = line.split()
            break
    else:
        pytest.fail(f"the part did not begin: {process.communicate()}")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "without figures are: stays" in err
    assert not psutil.pid_exists(int(pid)) and not Path(folder).exists()


# A part that is real


def test_quick_look_at_a_part_runs_it_and_writes_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = document.PAGE.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench", "--quick", "--only", "png,gpu_service"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| smooth: time" in done.stdout and "Pillow" in done.stdout
    assert "not run: " in done.stdout
    assert document.PAGE.read_bytes() == before


# What the figures are made of


def test_comparison_has_medians_of_rounds_and_the_spread_of_their_ratios() -> None:
    row = Comparison(what="x", ours=[1, 2, 3], others=[2, 2, 2], unit="ms", wanted="≤ 0.9").row()
    assert row == "| x | 2.00 ms | 2.00 ms | 1.00 (0.50 to 1.50) | ≤ 0.9 |"


def test_comparison_turned_round_is_how_many_times_as_fast() -> None:
    assert Comparison(what="x", ours=[10], others=[150], inverse=True).ratios == [15]


def test_order_of_turns_alternates() -> None:
    order: list[str] = []
    found = in_turns(3, lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0)
    assert order == ["a", "b", "b", "a", "a", "b"] and found == ([1.0] * 3, [2.0] * 3)


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("| a | 1 | 2 | 1.07 (1.05 to 1.08) | ≥ 1.3 |", False),
        ("| a | 1 | 2 | 0.88 (0.85 to 0.90) | ≤ 1.1 |", True),
        ("| a | 1 | 2 | 1.00 (0.9 to 1.1) | > 1 |", False),
        ("| a | 1 | 2 | 0.99 (0.9 to 1.1) | < 1 |", True),
        ("rate: 3/s; ratio 0.54 (0.49 to 0.61 in 20 rounds), wanted ≥ 0.5", True),
        ("| a | 1 | 2 | 1.00 (0.9 to 1.1) |  |", None),
        ("|---|---|---|---|---|", None),
    ],
)
def test_verdict_of_a_row(line: str, holds: bool | None) -> None:
    assert [found for _, found in verdicts(line)] == ([] if holds is None else [holds])


class Nvml:
    """A card that uses more after every look, and a joule between two readings of its counter."""

    class NVMLError_NotSupported(Exception):
        pass

    def __init__(self, *, counts: bool = True) -> None:
        self.log: list[str] = []
        self._counts = counts
        self._used = iter(range(10**9, 10**12, 10**9))
        self._energy = iter(range(0, 10**9, 1000))

    def nvmlInit(self) -> None:
        self.log.append("init")

    def nvmlShutdown(self) -> None:
        self.log.append("shutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=next(self._used))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self._counts:
            raise self.NVMLError_NotSupported
        return next(self._energy)


def test_meter_has_the_most_memory_and_the_energy_between_two_moments() -> None:
    nvml = Nvml()
    with gpu_meter.metered(nvml) as used:
        assert used.millijoules is None
    assert used.peak_bytes >= 2 * 10**9 and used.millijoules == 1000
    assert used.per_picture(5) == "0.2 J a picture" and nvml.log == ["init", "shutdown"]


def test_every_way_and_size_has_a_row_of_memory_and_energy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = gpu_meter.Used(millijoules=900_000)
    monkeypatch.setattr(gpu_service, "metered", lambda: gpu_meter.metered(Nvml()))
    monkeypatch.setattr(gpu_service, "run_way", lambda name, options, folder: (drawn, 6))
    monkeypatch.setattr(gpu_service, "run_diffusers", lambda options: (gpu_meter.Used(), 6))
    options = ["gpu_service", "DIR", "--size", "512,1024", "--only", "diffusers,fp4 speed"]
    monkeypatch.setattr(sys, "argv", options)
    gpu_service.main()
    table = capsys.readouterr().out.partition("| energy |\n")[2].splitlines()[1:]
    assert [row.split(" | ")[:2] for row in table] == [
        ["| diffusers", "512"], ["| fp4 speed", "512"], ["| diffusers", "1024"], ["| fp4 speed", "1024"]
    ]  # fmt: skip
    assert "150.0 J a picture" in table[1] and "no counter" in table[0] and " GB |" in table[0]


def test_meter_of_a_card_without_a_counter_says_so() -> None:
    with gpu_meter.metered(Nvml(counts=False)) as used:
        pass
    assert "no counter" in used.per_picture(4)


def test_meter_lets_go_of_nvml_when_what_ran_failed() -> None:
    nvml = Nvml()
    with pytest.raises(RuntimeError), gpu_meter.metered(nvml):
        raise RuntimeError
    assert nvml.log == ["init", "shutdown"]
