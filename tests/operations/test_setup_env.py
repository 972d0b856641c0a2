"""scripts/setup_env.sh: real environments and a real pip, with two tiny packages and no network."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.operations.checkout import clean_environment


def make_wheel(folder: Path, name: str, version: str, python: str = ">=3.11") -> str:
    """A package of one empty module; returns its sha256."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": b"",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n"
        ).encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in {**files, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, data)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class Checkout:
    """A checkout with setup_env.sh, a lock of tiny packages, and the wheels pip finds."""

    def __init__(self, root: Path):
        self.root = root
        (root / "scripts").mkdir(parents=True)
        (root / "requirements").mkdir()
        shutil.copy(ROOT / "scripts" / "setup_env.sh", root / "scripts")
        for part in ("", "fp4"):  # the setup asks it which wheels there are
            (root / "models" / part).mkdir()
            (root / "models" / part / "__init__.py").touch()
        shutil.copy(ROOT / "models" / "fp4" / "nunchaku_support.py", root / "models" / "fp4")
        self.lock("torch", torch=make_wheel(root / "wheels", "torch", "2.13.0+cpu"))
        self.lock("runtime", one=make_wheel(root / "wheels", "one", "1.0"))
        self.lock("fleet", one=self.hash_of("one"), far=make_wheel(root / "wheels", "far", "1.0"))
        self.lock(
            "dev",
            one=self.hash_of("one"),
            far=self.hash_of("far"),
            two=make_wheel(root / "wheels", "two", "1.0"),
        )

    def hash_of(self, name: str) -> str:
        wheel = next((self.root / "wheels").glob(f"{name}-*.whl"))
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def lock(self, file: str, **hashes: str) -> None:
        lines = [
            f"{name}=={'2.13.0' if name == 'torch' else '1.0'} --hash=sha256:{value}\n"
            for name, value in hashes.items()
        ]
        (self.root / "requirements" / f"{file}.txt").write_text("".join(lines))

    def start_setup(self, *flags: str, **environ: str | int) -> subprocess.Popen[str]:
        offline = {"PIP_NO_INDEX": 1, "PIP_FIND_LINKS": self.root / "wheels", **environ}
        return subprocess.Popen(
            [self.root / "scripts" / "setup_env.sh", *flags],
            env=clean_environment(**{key: str(value) for key, value in offline.items()}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *flags: str, **environ: str | int) -> tuple[int, str]:
        """The exit status and what was said; stdout stays empty."""
        with self.start_setup(*flags, **environ) as run:
            out, err = run.communicate(timeout=120)
        assert out == "" or "--help" in flags
        return run.returncode, err

    def imports(self, *modules: str, venv: str = ".venv") -> bool:
        command = [self.root / venv / "bin" / "python", "-c", f"import {', '.join(modules)}"]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture(scope="module")
def quick_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose new environments are copies of one, with the pip that is here already, compiled.

    The README's test makes one with Python itself.
    """
    folder = tmp_path_factory.mktemp("python")
    # By this finder alone: setuptools' own would take it for an import, and have distutils be Python's for good.
    ours = PathFinder.find_spec("pip")
    venv.create(folder / "made", symlinks=True, with_pip=ours is None)
    (packages,) = (folder / "made").glob("lib/python3*/site-packages")
    if ours is not None and ours.origin is not None:
        subprocess.run(["cp", "-a", Path(ours.origin).parent, packages], check=True)
    python = folder / "python3"
    python.write_text(
        "#!/bin/sh\n"
        f'if [ "$1 $2" = "-m venv" ]; then exec cp -a "{folder}/made/." "$3"; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, quick_python: Path) -> Checkout:
    """Set up once, by two runs at the same time; tests that use it leave it ready."""
    checkout = Checkout(tmp_path_factory.mktemp("setup") / "flux")
    runs = [checkout.start_setup(PYTHON=quick_python) for _ in range(2)]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted("installing" in text for text in said) == [False, True], "one installs, one waits"
    return checkout


@pytest.fixture
def bare(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "flux")


def test_setup_installs_torchs_cpu_build_and_the_lock(installed: Checkout) -> None:
    assert installed.imports("torch", "one")
    assert not installed.imports("two")
    assert list((installed.root / ".venv").glob("lib/*/site-packages/torch-2.13.0+cpu.dist-info"))


def test_setup_again_does_nothing(installed: Checkout) -> None:
    stamp = installed.root / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    assert installed.setup() == (0, "")
    assert stamp.stat().st_mtime_ns == before


def test_setup_dev_adds_what_the_tests_need_and_serves_the_runtime_too(installed: Checkout) -> None:
    assert installed.setup("--dev")[0] == 0
    assert installed.imports("torch", "one", "two")
    assert installed.setup() == installed.setup("--fleet") == (0, "")


def test_setup_fleet_adds_what_a_fleet_needs_and_serves_the_runtime_too(
    installed: Checkout,
) -> None:
    assert installed.setup("--fleet")[0] == 0
    assert installed.imports("torch", "one", "far")
    assert installed.setup() == (0, "")


def test_setup_after_a_changed_lock_installs_what_is_new(installed: Checkout) -> None:
    three = make_wheel(installed.root / "wheels", "three", "1.0")
    installed.lock("runtime", one=installed.hash_of("one"), three=three)
    status, said = installed.setup()
    assert (status, "starting over" in said) == (0, False)
    assert installed.imports("torch", "one", "three")


def test_setup_after_an_installation_that_was_cut_off_starts_over(
    installed: Checkout, quick_python: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "pip.conf"
    os.mkfifo(settings)  # pip reads them to their end: it stands until they are written
    with installed.start_setup("--dev", PYTHON=quick_python, PIP_CONFIG_FILE=settings) as run:
        with open(settings, "w"):
            assert (installed.root / ".venv" / ".installing").exists()
            run.kill()
            settings.unlink()
            settings.touch()
    status, said = installed.setup("--dev", PYTHON=quick_python)
    assert status == 0
    assert "did not finish: starting over" in said
    assert installed.imports("torch", "one", "two")


@pytest.mark.parametrize(("file", "name"), [("torch", "torch"), ("runtime", "one")])
def test_setup_with_a_file_that_is_not_the_locked_one_fails(
    bare: Checkout, file: str, name: str, quick_python: Path
) -> None:
    bare.lock(file, **{name: "0" * 64})
    status, said = bare.setup(PYTHON=quick_python)
    assert status == 1
    assert "DO NOT MATCH" in said
    assert "installation failed" in said
    assert not bare.imports(name)


def test_setup_without_python_says_what_to_install(bare: Checkout, tmp_path: Path) -> None:
    status, said = bare.setup(PATH=_path_with(tmp_path, "python3", "echo 'no'; exit 1"))
    assert status == 1
    assert "Python 3.11 or later is needed" in said
    assert "apt install python3" in said


def test_setup_without_the_venv_module_says_what_to_install(bare: Checkout, tmp_path: Path) -> None:
    script = 'case "$*" in *ensurepip*) exit 1 ;; esac'
    status, said = bare.setup(PATH=_path_with(tmp_path, "python3", script))
    assert status == 1
    assert "venv and ensurepip" in said
    assert "apt install python3-venv" in said


def test_setup_with_a_python_that_does_not_run_names_it(bare: Checkout) -> None:
    status, said = bare.setup(PYTHON="/no/such/python")
    assert status == 1
    assert "PYTHON=/no/such/python" in said


def test_setup_refuses_an_unknown_option(bare: Checkout) -> None:
    status, said = bare.setup("--prod")
    assert status == 2
    assert "--prod" in said
    assert "--dev" in said


# nunchaku's environment


@pytest.fixture
def with_nunchaku(bare: Checkout) -> Checkout:
    """The lock of an environment that asks for torch and a wheel at an address."""
    make_wheel(bare.root / "wheels", "nunchaku", "1.2.1+cu13.0torch2.11")
    wheel = bare.root / "wheels" / "nunchaku-1.2.1+cu13.0torch2.11-py3-none-any.whl"
    make_wheel(bare.root / "wheels", "torch", "2.11.0")
    (bare.root / "requirements" / "fp4-nunchaku.txt").write_text(
        f"# why\ntorch==2.11.0\nnunchaku @ file://{wheel} ; python_version >= '3.11'\n"
        f"nunchaku @ file:///nowhere.whl ; python_version < '3.11'\n"
    )
    return bare


def test_setup_nunchaku_makes_an_environment_of_its_own_once(
    with_nunchaku: Checkout, quick_python: Path
) -> None:
    status, said = with_nunchaku.setup("--nunchaku", PYTHON=quick_python)
    assert status == 0, said
    assert "into .venv-nunchaku" in said
    assert with_nunchaku.imports("torch", "nunchaku", venv=".venv-nunchaku")
    assert not (with_nunchaku.root / ".venv").exists()
    assert with_nunchaku.setup("--nunchaku") == (0, "")


def test_setup_is_not_repeated_when_nunchakus_list_changes(installed: Checkout) -> None:
    assert installed.setup()[0] == 0
    (installed.root / "requirements" / "fp4-nunchaku.txt").write_text("torch==2.11.0\n")
    assert installed.setup() == (0, "")


def test_setup_nunchaku_leaves_one_that_was_made_by_hand(with_nunchaku: Checkout) -> None:
    """As for a driver that needs other builds than the list names."""
    venv.create(with_nunchaku.root / ".venv-nunchaku", symlinks=True)
    (packages,) = (with_nunchaku.root / ".venv-nunchaku").glob("lib/python3*/site-packages")
    name = "nunchaku-1.2.1+cu12.8torch2.11"
    (packages / "nunchaku.py").write_text("NunchakuFluxTransformer2dModel = None\n")
    _describe(packages / f"{name}.dist-info", "nunchaku", name.partition("-")[2])
    _describe(packages / "torch-2.11.0+cu128.dist-info", "torch", "2.11.0+cu128")
    assert with_nunchaku.setup("--nunchaku") == (0, "")
    assert (packages / f"{name}.dist-info").exists()


def _describe(folder: Path, name: str, version: str) -> None:
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_setup_nunchaku_on_a_machine_without_a_wheel_says_so_and_makes_nothing(
    with_nunchaku: Checkout,
) -> None:
    """As on a machine of another make, which here is only said."""
    path = with_nunchaku.root / "models" / "fp4" / "nunchaku_support.py"
    path.write_text(path.read_text().replace('("Linux", "x86_64")', '("Linux", "vax")'))
    status, said = with_nunchaku.setup("--nunchaku")
    assert status == 1
    assert "nunchaku 1.2.1 has wheels for Linux on x86_64" in said
    assert not (with_nunchaku.root / ".venv-nunchaku").exists()


def test_setup_nunchaku_when_the_wheel_cannot_be_fetched_says_how_by_hand(
    with_nunchaku: Checkout, quick_python: Path
) -> None:
    for wheel in (with_nunchaku.root / "wheels").glob("nunchaku-*"):
        wheel.unlink()
    status, said = with_nunchaku.setup("--nunchaku", PYTHON=quick_python)
    assert status == 1
    assert (
        "By hand: python3 -m venv .venv-nunchaku && "
        ".venv-nunchaku/bin/python -m pip install -r requirements/fp4-nunchaku.txt"
    ) in said


def _path_with(folder: Path, name: str, script: str) -> str:
    """A PATH whose only Python is `script`."""
    tools = folder / "bin"
    tools.mkdir()
    for tool in (
        "bash",
        "cat",
        "cksum",
        "dirname",
        "env",
        "flock",
        "mkdir",
        "rm",
        "sed",
        "touch",
        "tr",
    ):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)
    return str(tools)


# Where nothing may be made


def test_check_says_whether_it_is_there_and_makes_nothing(
    installed: Checkout, bare: Checkout
) -> None:
    assert installed.setup("--check") == (0, "")
    assert bare.setup("--check") == (1, "")
    assert not (bare.root / ".venv").exists() and not (bare.root / ".venv.lock").exists()


def test_setup_of_a_checkout_that_can_only_be_read_says_who_must_do_it(bare: Checkout) -> None:
    """As a service of systemd's sees it."""
    command = ["bash", str(bare.root / "scripts" / "setup_env.sh"), "--fleet"]
    if os.geteuid() == 0:  # a mode does not keep root from writing
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, str(bare.root), *command]
    else:
        bare.root.chmod(0o555)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        bare.root.chmod(0o755)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this root may not mount anything")
    assert done.returncode == 78 and "scripts/setup_env.sh --fleet" in done.stderr
