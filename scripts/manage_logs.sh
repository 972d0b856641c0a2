#!/usr/bin/env bash
# The services' logs: scripts/manage_logs.sh status | clean | follow; --help lists the options.
set -euo pipefail

main() {
    local checkout
    checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [[ ! -x $checkout/.venv/bin/python ]]; then
        echo "manage_logs.sh: there is no .venv in $checkout: run scripts/setup_env.sh first" >&2
        exit 78
    fi
    # From where it was called: a folder may be named from there.
    PYTHONPATH=$checkout exec "$checkout/.venv/bin/python" -P -m scripts.logbook "$@"
}

main "$@"
