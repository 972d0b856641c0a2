#!/usr/bin/env bash
# Every check and test. Arguments go to pytest: scripts/test.sh -k port_guard
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    scripts/setup_env.sh --dev
    need shellcheck shellcheck
    # The headless shell takes half of the time of the whole browser; not every distribution has it.
    if can_install; then need chromium-headless-shell chromium-headless-shell || true; fi
    need chromium chromium-headless-shell chromium chromium-browser google-chrome
    need prometheus promtool # checks the alert rules
    need systemd systemd-analyze
    # Reads docker-compose.yml; it needs no engine. Docker's own plugin is as good.
    if ! docker compose version > /dev/null 2>&1; then need docker-compose docker-compose; fi
    need postgresql pg_ctl /usr/lib/postgresql/*/bin/pg_ctl # several front doors of a fleet share one
    need npm npm # and Node.js with it: the page's graph is tested without a browser

    # Tests start hundreds of processes: modules are compiled once for all of them.
    unset PYTHONDONTWRITEBYTECODE

    local checks=0 tests=0
    if (($#)); then
        scripts/check.sh || checks=$?
        .venv/bin/python -m pytest "$@" || tests=$?
    else
        scripts/page_tools.sh
        begin_checks
        # Two more than a small machine has cores, because much of a test is waiting; a file's tests stay together and share its
        # services. What must end within seconds comes after, and then what measures time or fills a GPU, alone.
        .venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not limit and not timing and not gpu' || tests=$?
        wait "$checking" || checks=$?
        cat "$checked"
        local limited=() measured=()
        mapfile -t limited < <(files_marked limit)
        .venv/bin/python -m pytest -n 2 -m limit "${limited[@]}" || tests=$?
        mapfile -t measured < <(files_marked 'timing|gpu')
        .venv/bin/python -m pytest -m 'timing or gpu' "${measured[@]}" || tests=$?
    fi
    if ((checks)); then
        echo "The static checks failed, see above." >&2
        exit "$checks"
    fi
    exit "$tests"
}

# The static checks compute while tests wait, and give way to them. What they say is in the file `checked`, because
# lines of two programs at once are nobody's.
begin_checks() {
    checked=$(mktemp)
    nice -n 19 scripts/check.sh > "$checked" 2>&1 &
    checking=$!
    trap 'kill "$checking" 2> /dev/null || true; rm -f "$checked"' EXIT
}

# files_marked <marker|...>: only these are imported.
files_marked() {
    grep -rlE "mark\.($1)" tests --include='test_*.py'
}

# need <Debian package> <command, or another one that serves as well...>
need() {
    local package=$1 command
    shift
    for command in "$@"; do
        if command -v "$command" > /dev/null; then return; fi
    done
    if can_install; then
        echo "test.sh: installing $package, which the tests need" >&2
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" > /dev/null
    else
        echo "test.sh: the tests need $package; install it (Debian and Ubuntu: apt install $package) and run this again" >&2
        exit 1
    fi
}

can_install() {
    command -v apt-get > /dev/null && as_root true 2> /dev/null
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

main "$@"
