"""Ray's own command, `python -m utils.fleet.ray_command start …`, without the subcommands that no fleet uses.

Their imports are two thirds of the time that `ray start` computes before it begins, and stay in its memory.
"""

from __future__ import annotations

import sys

# Ray's command does without any of them, as where a part of Ray is not installed.
UNUSED = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")


def main() -> None:
    sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None: not to be imported
    from ray.scripts.scripts import cli

    cli(prog_name="ray")


if __name__ == "__main__":
    main()
