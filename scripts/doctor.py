"""Says what this machine can run, and what to do where it cannot: `python -m scripts.doctor`.

Exit status 0: at least one service can draw a picture with its default model. 1: none can, and the
last lines say what to do. `--strict`, which `./flux doctor` means: 0 only where nothing is wrong at all. `--json` prints the same for programs. `--engine NAME` asks only whether
this machine can run that engine. Needs no running service, starts none, and changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config.errors import ConfigurationError
from models.precision import FLEET, known_precisions, profile_of
from scripts.diagnosis import databases, engines, environment, graphics, machine, packages
from scripts.diagnosis.machine import ROOT, Finding, State, Torch
from scripts.diagnosis.services import Checkup, Verdict

MARKS = {
    State.OK: "yes",
    State.NOTE: "note",
    State.NO: "no",
    State.WRONG: "WRONG",
    State.FAULT: "FAULT",
}
PAGE_PORT = 9000
INDENT = " " * 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings by section, in the order in which they are printed, and each service's verdict."""

    sections: dict[str, list[Finding]]
    verdicts: list[Verdict]

    @property
    def can_draw(self) -> bool:
        return any(verdict.can_draw for verdict in self.verdicts)

    @property
    def is_wrong(self) -> bool:
        """Whether anything is not as it should be, also where the services draw all the same."""
        return any(
            finding.state in (State.WRONG, State.FAULT)
            for findings in self.sections.values()
            for finding in findings
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.can_draw,
            "wrong": self.is_wrong,
            "services": [
                {**dataclasses.asdict(verdict), "ok": verdict.can_draw} for verdict in self.verdicts
            ],
            "sections": {
                name: [dataclasses.asdict(finding) for finding in findings]
                for name, findings in self.sections.items()
            },
        }


def examine() -> Report:
    """Look at everything. Raises nothing: what cannot be looked at is a finding."""
    cards = machine.look_at_cards()
    torch = machine.look_at_torch()
    of_machine = [
        _python(),
        packages.look_at_packages(),
        *packages.look_at_impostors(),
        _torch(torch),
        *_clock(),
        *environment.look_at(ROOT),
    ]
    sections = {
        "machine": of_machine,
        "GPUs": graphics.findings(cards, torch),
        "nunchaku": engines.nunchaku_findings(cards),
    }
    verdicts = []
    for name in known_precisions():
        checkup = Checkup(profile_of(name), cards, torch)
        sections[f"{checkup.profile.title} service"] = checkup.findings
        verdicts.append(checkup.verdict(of_machine))
    if shared := _shared_database():
        sections["fleet"] = shared
    sections["page"] = [
        machine.look_at_port("port", "127.0.0.1", PAGE_PORT, page=ROOT / "frontend")
    ]
    return Report(sections=sections, verdicts=verdicts)


def _python() -> Finding:
    text = (
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    )
    return Finding(name="Python", state=State.OK, text=text)


def _torch(torch: Torch) -> Finding:
    if torch.why_not:
        fix = f"make the environment anew: {packages.ANEW}"
        return Finding(name="torch", state=State.FAULT, text=torch.why_not, fix=fix)
    build = f"with CUDA {torch.cuda}" if torch.cuda else "a build for CPUs"
    return Finding(name="torch", state=State.OK, text=f"{torch.version}, {build}")


def _data_dirs() -> list[Path]:
    """Of the services whose settings can be read; the others have that as a finding."""
    from config.settings import load_settings

    found = []
    for name in known_precisions():
        with contextlib.suppress(ConfigurationError, OSError, ValueError):
            found.append(load_settings(name).storage.data_dir)
    return list(dict.fromkeys(found))


def _shared_database() -> list[Finding]:
    """Where a fleet of this machine keeps its jobs on a server. What cannot be read is told with the services."""
    with contextlib.suppress(ImportError, ConfigurationError, OSError, ValueError):
        from config.settings import load_settings

        url = load_settings(FLEET.name).fleet.database_url.get_secret_value()
        return [databases.look_at_server(url)] if url else []
    return []


def _clock() -> list[Finding]:
    try:
        return [databases.look_at_clock(_data_dirs(), ROOT, datetime.now(UTC))]
    except ImportError:
        return []  # a package is missing, which is said already


def print_report(report: Report, *, brief: bool = False) -> None:
    """For people. `brief`: without a line for each model that does not run here and need not."""
    for title, findings in report.sections.items():
        print(f"\n{title}")
        unsaid = [finding for finding in findings if brief and _is_spare_model(finding)]
        for finding in findings:
            if finding not in unsaid:
                _print_finding(finding)
        if unsaid:
            print(f"  no      {len(unsaid)} other models of the catalog (--all lists them)")
    print("\nin short")
    for verdict in report.verdicts:
        title = profile_of(verdict.precision).title
        if verdict.can_draw:
            print(f"  yes     {title} can draw with {verdict.default_model}")
            continue
        print(f"  no      {title} cannot draw:")
        for reason in verdict.reasons:
            print(f"{INDENT}{reason}".replace("\n", f"\n{INDENT}"))
    # What stops a service is among its reasons already.
    all_of_them = [finding for findings in report.sections.values() for finding in findings]
    for finding in dict.fromkeys(all_of_them):
        if finding.state is State.WRONG:
            _print_finding(finding)


def _is_spare_model(finding: Finding) -> bool:
    return finding.name.startswith("model ") and finding.state is State.NO


def _print_finding(finding: Finding) -> None:
    text = finding.text.replace("\n", f"\n{INDENT}")
    print(f"  {MARKS[finding.state]:5}   {finding.name}: {text}")
    if finding.fix:
        print(f"{INDENT}→ {finding.fix}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doctor", description="Says what this machine can run."
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--strict", action="store_true", help="status 1 where anything is wrong")
    parser.add_argument("--engine", metavar="NAME", help="only whether this machine can run it")
    options = parser.parse_args(arguments)
    if options.engine is not None:
        can_run, text = engines.check(options.engine)
        print(json.dumps({"ok": can_run, "text": text}) if options.json else text)
        return 0 if can_run else 1
    report = examine()
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report)
    return int(report.is_wrong if options.strict else not report.can_draw)


if __name__ == "__main__":
    sys.exit(main())
