#!/usr/bin/env bash
# The static checks: black, ruff, shellcheck, hadolint, and the page's types. Runs all of them, then says whether one failed.
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    scripts/setup_env.sh --dev
    if ! command -v shellcheck > /dev/null; then
        echo "check.sh: shellcheck is missing; scripts/test.sh installs it on Debian, else install it by hand" >&2
        exit 1
    fi
    scripts/page_tools.sh
    local failed=()
    # A third of black's time goes into looking for garbage, of which there is none before it ends.
    check black .venv/bin/python -c 'import gc; gc.disable(); import black; black.patched_main()' --check --quiet --diff .
    check ruff .venv/bin/python -m ruff check .
    check shellcheck shellcheck --external-sources flux ./*.sh scripts/*.sh scripts/*/*.sh .ci/run
    check hadolint .venv/bin/hadolint Dockerfile
    check tsc .venv/page-tools/node_modules/.bin/tsc -p frontend --skipDefaultLibCheck
    if ((${#failed[@]})); then
        echo "check.sh: failed: ${failed[*]}" >&2
        exit 1
    fi
}

# check <name> <command...>
check() {
    local name=$1
    shift
    if "$@"; then
        echo "$name: ok"
    else
        echo "$name: FAILED" >&2
        failed+=("$name")
    fi
}

main "$@"
