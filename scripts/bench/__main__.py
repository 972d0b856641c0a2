"""Every benchmark in one run: ours beside the alternatives, on this machine.

    python -m scripts.bench [--only png,submits,...] [--quick] [--write] [--weights DIR]
    python -m scripts.bench --list

Runs the parts one after the other, each in a process of its own with a deadline, and prints their tables, then how long
each took and what fell short of what is wanted. What cannot run here is named with its reason and what to do.
`--write` puts the figures into `docs/benchmarks.md` and the plots into `docs/costs`. `--quick` looks in seconds
whether every part works; its figures mean nothing and are never written. The exit status is 1 when a part failed,
2 for wrong options, 130 after Ctrl-C. Rivals' packages come into `.venv-rivals`, once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.bench import document, machine, running
from scripts.bench.comparison import verdicts
from scripts.bench.parts import PARTS, Part

OVERVIEW = "all"  # the place of the list of parts in the page


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A part that ran, failed, or could not run."""

    part: Part
    command: str
    state: str  # "done", "failed", "not run"
    why: str = ""
    seconds: float = 0.0
    output: str = ""

    def row(self) -> str:
        words = self.state if not self.why else f"{self.state}: {self.why}"
        took = f"{self.seconds:.0f} s" if self.seconds else ""
        return f"| {self.part.name} | {self.part.about} | `{self.command}` | {took} | {words} |"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.list:
        return _list()
    wanted = _wanted(options)
    running.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    about = f"{machine.describe()}, load {machine.load():.1f} at the start"
    print(about, flush=True)
    done: list[Done] = []
    try:
        for part in wanted:
            found = _run(part, options)
            done.append(_written(found, about) if options.write else found)
        return _conclude(done, about, options)
    except KeyboardInterrupt:
        left = ", ".join(part.name for part in wanted[len(done) :])
        print(f"\ninterrupted; without figures are: {left}", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--only", help="the parts, with commas between; see --list")
    parser.add_argument("--list", action="store_true", help="say which parts there are")
    parser.add_argument("--quick", action="store_true", help="only look whether they work")
    parser.add_argument("--write", action="store_true", help="figures into docs/benchmarks.md")
    parser.add_argument("--weights", type=Path, help="folder of scripts.bench.random_snapshot")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--quick measures nothing that could be written: leave out --quick or --write")
    for name in (options.only or "").split(",") if options.only is not None else ():
        if name not in PARTS:
            parser.error(f"--only: there is no part {name!r}; the parts are {', '.join(PARTS)}")
    return options


def _wanted(options: argparse.Namespace) -> list[Part]:
    if options.only is not None:
        return [PARTS[name] for name in dict.fromkeys(options.only.split(","))]
    return [part for part in PARTS.values() if not part.by_name]


def _list() -> int:
    width = max(map(len, PARTS))
    for part in PARTS.values():
        alone = f" (only by name: {part.by_name})" if part.by_name else ""
        print(f"{part.name:{width}}  {part.about}{alone}")
    return 0


def _run(part: Part, options: argparse.Namespace) -> Done:
    print(f"\n{part.name}: {part.about}\n", flush=True)
    command = part.command(options.weights, quick=options.quick, write=options.write)
    shown = " ".join(["python", *part.command(Path("DIR"))])
    why_not = part.why_not(options.weights)
    if why_not is not None:
        print(f"not run: {why_not}", flush=True)
        return Done(part=part, command=shown, state="not run", why=why_not)
    outcome = running.run(
        command, deadline_seconds=part.deadline_seconds, say=lambda line: print(line, flush=True)
    )
    failure = outcome.failure
    if failure is None and not options.quick and not document.figures(outcome.output):
        failure = "it printed no figures"
    return Done(
        part=part,
        command=shown,
        state="failed" if failure else "done",
        why=failure or "",
        seconds=outcome.seconds,
        output=outcome.output,
    )


def _written(done: Done, about: str) -> Done:
    """Of a part that was done; what stands there of an earlier run stays otherwise."""
    if done.state != "done" or done.part.writes:
        return done
    try:
        document.write(done.part.name, f"{about}:\n\n{document.figures(done.output)}")
    except (document.NoPlace, OSError) as error:
        return replace(done, state="failed", why=f"not written: {error}")
    return done


def _conclude(done: Sequence[Done], about: str, options: argparse.Namespace) -> int:
    rows = ["| part | | alone | took | |", "|---|---|---|---|---|", *(each.row() for each in done)]
    total = sum(each.seconds for each in done)
    print("\n" + "\n".join(rows) + f"\n\n{total / 60:.1f} min in all")
    if not options.quick:
        _judge(done)
    if options.write and options.only is None:
        words = f"The newest run of all of them: {about}, {total / 60:.0f} min."
        document.write(OVERVIEW, f"{words}\n\n" + "\n".join(rows))
    failed = [each for each in done if each.state == "failed"]
    for each in failed:
        print(f"{each.part.name} failed: {each.why}", file=sys.stderr)
    return 1 if failed else 0


def _judge(done: Sequence[Done]) -> None:
    """What is wanted, and which rows fall short of it."""
    found = [(each.part.name, *verdict) for each in done for verdict in verdicts(each.output)]
    short = [f"{name}: {row}" for name, row, holds in found if not holds]
    if found:
        print(f"\n{len(found) - len(short)} of {len(found)} rows are as wanted")
    if short:
        print("\nshort of what is wanted:\n" + "\n".join(short))


if __name__ == "__main__":
    sys.exit(main())
