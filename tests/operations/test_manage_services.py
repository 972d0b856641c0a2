"""scripts/manage_services.sh: every verb against a stand-in systemd, installs below a folder, and the units themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.settings import ROOT
from tests.operations.checkout import clean_environment, copy_checkout

# Keeps which units are enabled and active as files, and notes how it was called. STATE is what runs the machine.
SYSTEMCTL = """#!/bin/bash
echo "systemctl $*" >> "$STAND_IN/calls"
args=() user=''
for arg in "$@"; do
    case $arg in
        --user) user=user- ;;
        --root=* | --quiet | --now | --property=*) ;;
        *) args+=("$arg") ;;
    esac
done
verb=${args[0]} units=("${args[@]:1}")
case $verb in
    is-system-running) cat "$STAND_IN/state" ;;
    is-enabled) [[ -e "$STAND_IN/${user}enabled/${units[0]}" ]] ;;
    enable) mkdir -p "$STAND_IN/${user}enabled" && cd "$STAND_IN/${user}enabled" && touch "${units[@]}" ;;
    disable) cd "$STAND_IN/${user}enabled" && rm -f "${units[@]}" ;;
    start | restart)
        for unit in "${units[@]}"; do
            if [[ -e "$STAND_IN/fails/$unit" ]]; then echo "Job for $unit failed." >&2; exit 1; fi
            touch "$STAND_IN/active.$unit"
        done ;;
    stop) for unit in "${units[@]}"; do rm -f "$STAND_IN/active.$unit"; done ;;
    show)
        if [[ -e "$STAND_IN/active.${units[0]}" ]]; then
            printf 'ActiveState=active\\nSubState=running\\nMainPID=77\\nMemoryCurrent=104857600\\nNRestarts=2\\n'
        else
            printf 'ActiveState=failed\\nSubState=failed\\nMainPID=0\\nMemoryCurrent=[not set]\\nNRestarts=0\\n'
        fi ;;
esac
"""
PROGRAMS = {"systemctl": SYSTEMCTL} | {
    name: '#!/bin/bash\necho "${0##*/} $*" >> "$STAND_IN/calls"\n'
    for name in ("journalctl", "systemd-sysusers", "systemd-tmpfiles", "runuser")
}
PROGRAMS["id"] = (
    '#!/bin/bash\nif [[ $* == -u && -e $STAND_IN/uid ]]; then cat "$STAND_IN/uid"; else exec /usr/bin/id "$@"; fi\n'
)
UNITS = {
    "flux-fp4": "flux-api@fp4.service",
    "flux-bf16": "flux-api@bf16.service",
    "flux-cleanup": "flux-cleanup.timer",
    "flux-page": "flux-page.service",
}


@dataclass(frozen=True)
class Machine:
    """A checkout on a machine with a stand-in systemd; `root` stands for /."""

    checkout: Path
    stand_in: Path
    root: Path

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / "manage_services.sh", *arguments],
            env=clean_environment(
                **{
                    "PATH": f"{self.stand_in / 'bin'}:/usr/bin:/bin",
                    "STAND_IN": str(self.stand_in),
                    "HOME": str(self.root / "home"),
                    "XDG_CONFIG_HOME": "",
                    **environ,
                }
            ),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def well(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def calls(self) -> list[str]:
        path = self.stand_in / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if "is-enabled" not in line and "is-system" not in line]

    def files(self) -> dict[str, str]:
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def shared_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("services") / "flux")


@pytest.fixture
def machine(tmp_path: Path, shared_checkout: Path) -> Machine:
    made = Machine(shared_checkout, tmp_path / "stand-in", tmp_path / "root")
    (made.stand_in / "bin").mkdir(parents=True)
    made.root.mkdir()
    (made.stand_in / "state").write_text("running\n")
    for name, text in PROGRAMS.items():
        path = made.stand_in / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return made


# install


def test_install_puts_units_settings_and_the_account_below_the_root(machine: Machine) -> None:
    said = machine.well("install", "--root", str(machine.root))
    files = machine.files()
    assert set(files) == {
        "etc/systemd/system/flux-api@.service",
        "etc/systemd/system/flux-gpu.service",
        "etc/systemd/system/flux-page.service",
        "etc/systemd/system/flux-cleanup.service",
        "etc/systemd/system/flux-cleanup.timer",
        "etc/sysusers.d/flux-api.conf",
        "etc/tmpfiles.d/flux-api.conf",
        *(f"etc/flux-api/{name}.env" for name in ("services", "fp4", "bf16", "page")),
    }
    for name, text in files.items():
        assert "/opt/flux-api" not in text and not re.search(r"^#[\[:\]]|^#own", text, re.M), name
    assert (
        f"ExecStart={machine.checkout}/start_%i_api.sh"
        in files["etc/systemd/system/flux-api@.service"]
    )
    assert "User=flux-api" in files["etc/systemd/system/flux-api@.service"]
    calls = machine.calls()
    assert (
        f"systemctl --root={machine.root} enable {' '.join(_units('flux-cleanup', 'flux-bf16', 'flux-fp4', 'flux-page'))}"
        in calls
    )
    assert any(call.startswith("systemd-sysusers --root=") for call in calls)
    assert any(call.startswith("systemd-tmpfiles --create --root=") for call in calls)
    assert not any("daemon-reload" in call for call in calls)  # nothing runs there
    assert "/var/lib/flux-api" in said


def _units(*names: str) -> list[str]:
    return [UNITS[name] for name in names]


def test_install_settings_are_for_their_owner_alone(machine: Machine) -> None:
    machine.well("install", "flux-bf16", "--root", str(machine.root))
    path = machine.root / "etc" / "flux-api" / "bf16.env"
    assert path.stat().st_mode & 0o777 == 0o600


def test_install_again_changes_nothing_and_keeps_settings(machine: Machine) -> None:
    arguments = ("install", "--root", str(machine.root))
    machine.well(*arguments)
    settings = machine.root / "etc" / "flux-api" / "bf16.env"
    settings.write_text("FLUX_PORT=8101\n")
    before = machine.files()
    said = machine.well(*arguments)
    assert machine.files() == before and "written" not in said


def test_install_after_a_change_writes_what_changed_alone(machine: Machine) -> None:
    arguments = ("install", "--root", str(machine.root))
    machine.well(*arguments)
    (machine.root / "etc/systemd/system/flux-page.service").write_text("of an earlier version")
    said = machine.well(*arguments)
    assert [line for line in said.splitlines() if line.startswith("written")] == [
        f"written    {machine.root}/etc/systemd/system/flux-page.service"
    ]


def test_install_named_ones_alone(machine: Machine) -> None:
    machine.well("install", "flux-cleanup", "--root", str(machine.root))
    installed = {path.name for path in (machine.root / "etc/systemd/system").iterdir()}
    assert installed == {"flux-cleanup.service", "flux-cleanup.timer"}


@pytest.fixture
def me(machine: Machine) -> str:
    """The account of whoever runs the tests, which the image of `root` has too, in a group of another name."""
    name = subprocess.run(["/usr/bin/id", "-un"], capture_output=True, text=True).stdout.strip()
    (machine.root / "etc").mkdir()
    (machine.root / "etc" / "passwd").write_text(
        f"other:x:7:7::/:/bin/sh\n{name}:x:8:9::/:/bin/sh\n"
    )
    (machine.root / "etc" / "group").write_text("other:x:7:\npainters:x:9:\n")
    return name


def test_install_account_runs_them_and_stays_at_the_next_install(machine: Machine, me: str) -> None:
    machine.well("install", "--account", me, "--root", str(machine.root))
    assert f"User={me}\n" in machine.files()["etc/systemd/system/flux-api@.service"]
    assert "etc/sysusers.d/flux-api.conf" not in machine.files()
    folders = machine.files()["etc/tmpfiles.d/flux-api.conf"]
    assert "d /etc/flux-api 0750 root painters -\n" in folders
    assert f"d {machine.checkout}/data - {me} painters -\n" in folders and "/var/" not in folders
    unit = machine.files()["etc/systemd/system/flux-api@.service"]
    assert f"\nReadWritePaths=-{machine.checkout}/data " in unit
    assert "StateDirectory" not in unit and "FLUX_DATA_DIR" not in unit
    assert f"runuser -u {me} -- test -r {machine.checkout}/.venv/bin/python" in machine.calls()
    machine.well("install", "--root", str(machine.root))
    assert f"User={me}\n" in machine.files()["etc/systemd/system/flux-page.service"]


def test_install_account_that_is_not_there_is_named(machine: Machine) -> None:
    done = machine.run("install", "--account", "nobody-at-all", "--root", str(machine.root))
    assert done.returncode == 2 and "nobody-at-all" in done.stderr and machine.files() == {}


def test_install_checkout_that_the_account_cannot_read_is_named(machine: Machine, me: str) -> None:
    runuser = machine.stand_in / "bin" / "runuser"
    runuser.write_text("#!/bin/bash\nexit 1\n")
    done = machine.run("install", "--account", me, "--root", str(machine.root))
    assert done.returncode == 78 and "cannot read" in done.stderr
    assert f"{machine.checkout}/start.sh" in done.stderr and "--account" in done.stderr
    assert set(machine.files()) == {"etc/passwd", "etc/group"}


def test_install_for_a_user_needs_no_root_and_asks_for_no_rights(machine: Machine) -> None:
    (machine.stand_in / "uid").write_text("1000\n")
    said = machine.well("install", "--user")
    files = machine.files()
    assert {name for name in files if name.endswith(".service")} == {
        f"home/.config/systemd/user/{name}.service"
        for name in ("flux-api@", "flux-page", "flux-cleanup")
    }
    unit = files["home/.config/systemd/user/flux-api@.service"]
    for word in ("User=", "ProtectSystem", "CapabilityBoundingSet", "DeviceAllow", "FLUX_DATA_DIR"):
        assert not re.search(rf"^(Environment=)?{word}", unit, re.M), word
    assert f"{machine.root}/home/.config/flux-api/%i.env" in unit
    assert "WantedBy=default.target" in unit and "NoNewPrivileges=yes" in unit
    assert "systemctl --user daemon-reload" in machine.calls() and "enable-linger" in said


def test_install_dry_run_changes_nothing(machine: Machine) -> None:
    (machine.stand_in / "uid").write_text("1000\n")
    said = machine.well("install", "--user", "--dry-run")
    assert "would write" in said and "would run  systemctl --user enable" in said
    assert machine.files() == {} and machine.calls() == []


def test_install_beside_data_of_the_checkout_says_how_to_go_on_with_it(
    machine: Machine, tmp_path: Path
) -> None:
    used = copy_checkout(tmp_path / "used")
    at = ("install", "flux-cleanup", "--root", str(machine.root))
    other = Machine(used, machine.stand_in, machine.root)
    assert "--account" not in other.well(*at)
    (used / "data").mkdir()
    (used / "data" / "bf16.sqlite3").touch()
    assert "none of these services sees them" in other.well(*at)


# uninstall


def test_uninstall_leaves_settings_and_data(machine: Machine) -> None:
    at = ("--root", str(machine.root))
    machine.well("install", *at)
    picture = machine.root / "var/lib/flux-api/generated_images/a.png"
    picture.parent.mkdir(parents=True)
    picture.write_text("a picture")
    machine.well("uninstall", *at)
    left = set(machine.files())
    assert left == {
        "var/lib/flux-api/generated_images/a.png",
        *(f"etc/flux-api/{name}.env" for name in ("services", "fp4", "bf16", "page")),
    }
    assert machine.well("uninstall", *at) == "Nothing was installed.\n"


def test_uninstall_one_keeps_what_the_others_share(machine: Machine) -> None:
    at = ("--root", str(machine.root))
    machine.well("install", *at)
    machine.well("uninstall", "flux-fp4", *at)
    assert "etc/systemd/system/flux-api@.service" in machine.files()
    machine.well("uninstall", "flux-bf16", *at)
    assert "etc/systemd/system/flux-api@.service" not in machine.files()
    assert "etc/systemd/system/flux-page.service" in machine.files()
    assert "etc/tmpfiles.d/flux-api.conf" in machine.files()


def test_uninstall_for_a_user_stops_what_runs(machine: Machine) -> None:
    machine.well("install", "--user", "flux-bf16", "flux-page")
    machine.calls()
    machine.well("uninstall", "--user")
    units = " ".join(_units("flux-bf16", "flux-page"))
    assert machine.calls() == [
        f"systemctl --user disable --now {units}",
        "systemctl --user daemon-reload",
    ]


# start, stop, restart, status, logs


@pytest.fixture
def installed(machine: Machine) -> Machine:
    """Both services and the cleanup, for a user."""
    machine.well("install", "--user", "flux-cleanup", "flux-fp4", "flux-bf16")
    machine.calls()
    return machine


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_verb_reaches_all_that_is_installed(installed: Machine, verb: str) -> None:
    installed.well(verb, "--user")
    units = " ".join(_units("flux-cleanup", "flux-bf16", "flux-fp4"))
    assert installed.calls() == [f"systemctl --user {verb} {units}"]


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "status", "logs"])
def test_verb_named_service_that_is_not_installed_is_refused(installed: Machine, verb: str) -> None:
    done = installed.run(verb, "--user", "flux-page")
    assert done.returncode == 4 and "install flux-page --user" in done.stderr


def test_start_that_fails_says_where_to_look(installed: Machine) -> None:
    (installed.stand_in / "fails").mkdir()
    (installed.stand_in / "fails" / UNITS["flux-fp4"]).touch()
    done = installed.run("start", "--user", "flux-fp4")
    assert done.returncode == 1 and "manage_services.sh logs --user" in done.stderr


def test_status_tells_each_and_whether_all_run(installed: Machine) -> None:
    installed.well("start", "--user", "flux-bf16")
    done = installed.run("status", "--user")
    assert done.returncode == 3 and "logs --user" in done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"flux-cleanup", "flux-fp4", "flux-bf16"}
    assert "active (running), pid 77, 100 MiB, restarted 2 times" in lines["flux-bf16"]
    assert "failed (failed)" in lines["flux-fp4"]
    assert installed.run("status", "--user", "flux-bf16").returncode == 0


def test_verb_where_nothing_is_installed_says_how_to(machine: Machine) -> None:
    for verb in ("status", "logs", "start"):
        done = machine.run(verb, "--user")
        assert done.returncode == 4 and "install --user" in done.stderr


def test_logs_are_the_journals(installed: Machine) -> None:
    installed.well("logs", "--user", "flux-bf16", "-f", "-n", "5")
    installed.well("logs", "--user", "flux-cleanup")
    first, second = installed.calls()
    assert first.startswith("journalctl ") and first.endswith(
        "--user-unit flux-api@bf16.service --follow --lines 5"
    )
    assert "--user-unit flux-cleanup.timer --user-unit flux-cleanup.service" in second


# What is wrong is said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "Usage"),
        (("begin",), "begin"),
        (("start", "flux-fp8"), "flux-fp8"),
        (("start", "--loud"), "--loud"),
        (("install", "--root", "/no/such/folder"), "/no/such/folder"),
        (("install", "--root"), "--root"),
        (("install", "--account", "a b"), "a b"),
        (("install", "--user", "--account", "me"), "--user"),
        (("start", "--root", "/"), "--root"),
        (("status", "-f"), "-f"),
        (("logs", "-n", "many"), "many"),
    ],
)
def test_wrong_use_is_named(machine: Machine, arguments: tuple[str, ...], named: str) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2 and named in done.stderr
    assert machine.files() == {} and machine.calls() == []


def test_help_lists_the_verbs(machine: Machine) -> None:
    assert "uninstall" in machine.well("--help") == machine.well("install", "--help")


def test_machine_without_systemd_is_told_of_the_other_way(machine: Machine, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "dirname", "cat"):
        (few / name).symlink_to(shutil.which(name))
    done = machine.run("install", PATH=str(few))
    assert done.returncode == 69 and "./start.sh" in done.stderr


@pytest.mark.parametrize(("flags", "remedy"), [((), "./start.sh"), (("--user",), "enable-linger")])
def test_systemd_that_does_not_run_is_told(
    machine: Machine, flags: tuple[str, ...], remedy: str
) -> None:
    (machine.stand_in / "state").write_text("offline\n")
    done = machine.run("start", *flags)
    assert done.returncode == 69 and remedy in done.stderr


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_without_root_it_says_how(machine: Machine, verb: str) -> None:
    (machine.stand_in / "uid").write_text("1000\n")
    done = machine.run(verb, "flux-page")
    assert done.returncode == 77
    assert "sudo" in done.stderr and "--user" in done.stderr and machine.files() == {}


def test_install_without_an_environment_says_what_to_run(machine: Machine, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "scripts").mkdir(parents=True)
    for name in ("manage_services.sh", "setup_env.sh"):
        shutil.copy(ROOT / "scripts" / name, bare / "scripts" / name)
    shutil.copytree(ROOT / "requirements", bare / "requirements")
    done = Machine(bare, machine.stand_in, machine.root).run("install", "--user")
    assert done.returncode == 78 and "scripts/setup_env.sh" in done.stderr
    assert machine.files() == {}


def test_install_fleet_without_ray_says_what_to_run(machine: Machine, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(machine.checkout / "scripts", bare / "scripts")
    (bare / "scripts" / "setup_env.sh").write_text('#!/bin/sh\n[ "$*" = --check ]\n')
    done = Machine(bare, machine.stand_in, machine.root).run("install", "--user", "flux-fleet")
    assert done.returncode == 78 and "setup_env.sh --fleet" in done.stderr
    assert machine.files() == {}


@pytest.mark.skipif(not Path("/tmp").is_dir(), reason="there is no /tmp")
def test_install_from_a_folder_that_services_cannot_see_is_refused(machine: Machine) -> None:
    (machine.stand_in / "uid").write_text("0\n")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(machine.checkout / "scripts", Path(folder) / "scripts")
        done = Machine(Path(folder), machine.stand_in, machine.root).run("install", "--dry-run")
    assert done.returncode == 78 and "/tmp of their own" in done.stderr


def test_install_from_a_path_that_units_cannot_name_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    shutil.copytree(machine.checkout / "scripts", tmp_path / "two words" / "scripts")
    done = Machine(tmp_path / "two words", machine.stand_in, machine.root).run("install", "--user")
    assert done.returncode == 78 and "two words" in done.stderr
    assert machine.files() == {}


@pytest.mark.parametrize("name", ["a#b", "a&b", "50%", "a*", "a[b]", "a\\b", "a\nb", 'a"b'])
def test_install_for_a_user_whose_settings_units_cannot_name_is_refused(
    machine: Machine, name: str
) -> None:
    done = machine.run("install", "--user", XDG_CONFIG_HOME=str(machine.root / name))
    assert done.returncode == 78 and "XDG_CONFIG_HOME" in done.stderr
    assert machine.files() == {}


def test_install_for_a_user_takes_no_path_from_where_it_is_called(machine: Machine) -> None:
    done = machine.run("install", "--user", XDG_CONFIG_HOME="config")
    assert done.returncode == 78 and "XDG_CONFIG_HOME" in done.stderr


def test_install_for_a_user_takes_settings_at_a_path_with_a_space(machine: Machine) -> None:
    done = machine.run("install", "--user", XDG_CONFIG_HOME=str(machine.root / "two w\xf6rds"))
    assert done.returncode == 0, done.stderr
    unit = machine.files()["two w\xf6rds/systemd/user/flux-api@.service"]
    assert f"EnvironmentFile=-{machine.root}/two w\xf6rds/flux-api/%i.env" in unit


# The units, as systemd reads them

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)
# Service: the most that it may be exposed, of ten.
EXPOSURE = {
    "flux-cleanup": 3.0,
    "flux-api@bf16": 4.0,
    "flux-api@fp4": 4.0,
    "flux-fleet": 4.0,
    "flux-page": 4.0,
    "flux-gpu": 4.0,
}


@pytest.fixture(scope="module")
def units(
    tmp_path_factory: pytest.TempPathFactory, shared_checkout: Path
) -> Callable[[bool], Path]:
    """The folder of the units that are put in for the system, or for a user."""
    folder = tmp_path_factory.mktemp("units")

    def installed_for(user: bool) -> Path:
        machine = Machine(shared_checkout, folder / "stand-in", folder / f"root{user}")
        if not machine.root.exists():
            machine.root.mkdir()
            (machine.stand_in / "bin").mkdir(parents=True, exist_ok=True)
            (machine.stand_in / "state").write_text("running\n")
            for name, text in PROGRAMS.items():
                (machine.stand_in / "bin" / name).write_text(text)
                (machine.stand_in / "bin" / name).chmod(0o755)
            machine.well("install", "all", *(["--user"] if user else ["--root", str(machine.root)]))
        below = "home/.config/systemd/user" if user else "etc/systemd/system"
        found = machine.root / below
        for precision in ("fp4", "bf16"):
            shutil.copy(found / "flux-api@.service", found / f"flux-api@{precision}.service")
        return found

    return installed_for


@needs_systemd
@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_units_are_as_systemd_wants_them(units: Callable[[bool], Path], user: bool) -> None:
    folder = units(user)
    names = [name for name in os.listdir(folder) if name.startswith("flux-") and "@." not in name]
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(["--user"] if user else []), *sorted(names)],
        cwd=folder,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    said = [line for line in checked.stderr.splitlines() if "flux-" in line]
    assert said == [] and checked.returncode == 0, checked.stderr


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE)
def test_unit_is_exposed_no_more_than_it_must(units: Callable[[bool], Path], name: str) -> None:
    checked = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"./{name}.service"],
        cwd=units(False),
        capture_output=True,
        text=True,
    )
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", checked.stdout)
    assert match is not None, checked.stderr
    assert float(match[1]) <= EXPOSURE[name]


def test_unit_of_the_services_reaches_the_gpu(units: Callable[[bool], Path]) -> None:
    unit = (units(False) / "flux-api@.service").read_text()
    for device in ("nvidia", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        assert f"\nDeviceAllow=char-{device} rw\n" in unit
    assert not re.search(r"^(PrivateDevices|MemoryDenyWriteExecute|PrivateUsers)=", unit, re.M)


@needs_systemd
def test_install_below_a_root_with_the_real_systemd(machine: Machine) -> None:
    for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles"):
        (machine.stand_in / "bin" / name).unlink()
    at = ("flux-bf16", "--root", str(machine.root))
    if os.geteuid() != 0:  # they give files away
        for name in ("systemd-sysusers", "systemd-tmpfiles"):
            (machine.stand_in / "bin" / name).symlink_to("/bin/true")
    machine.well("install", *at)
    wanted = machine.root / "etc/systemd/system/multi-user.target.wants/flux-api@bf16.service"
    assert wanted.is_symlink()
    machine.well("uninstall", *at)
    assert not wanted.is_symlink()
