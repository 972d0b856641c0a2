#!/usr/bin/env bash
# The command line: ./flux --help. Runs from anywhere, also by a link, with the Python of the checkout's .venv.
set -euo pipefail

EXIT_WRONG=1

main() {
    local path root target
    path=${BASH_SOURCE[0]}
    while [[ -L $path ]]; do
        target=$(readlink "$path")
        [[ $target == /* ]] || target=$(dirname "$path")/$target
        path=$target
    done
    root=$(cd "$(dirname "$path")" && pwd)
    if is_recent "$root/.venv/bin/python"; then
        exec "$root/.venv/bin/python" "$root/cli/__main__.py" "$@"
    fi
    # The doctor needs no package, so that it can say which ones are missing.
    if [[ ${1-} == doctor ]]; then
        local python
        for python in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
            if is_recent "$python"; then exec "$python" "$root/cli/__main__.py" "$@"; fi
        done
    fi
    local fault remedy="run $root/scripts/setup_env.sh, or ./start.sh, which does it too"
    if [[ -e $root/.venv || -L $root/.venv ]]; then
        fault="$root/.venv has no working Python of version 3.11 or later"
    else
        fault="there is no $root/.venv yet"
    fi
    if ! has_python; then
        remedy="install Python 3.11 or later (Debian and Ubuntu: apt install python3 python3-venv), then $remedy"
    fi
    complain "$fault" "$remedy" "$@"
    exit "$EXIT_WRONG"
}

# complain <fault> <remedy> <arguments...>: for people, and for programs where --json asks for it.
complain() {
    local fault=$1 remedy=$2 argument
    shift 2
    echo "flux: $fault; $remedy" >&2
    for argument in "$@"; do
        [[ $argument != -- ]] || break
        if [[ $argument == --json ]]; then
            printf '{"error": {"code": "no_environment", "message": "%s", "exit_status": %d}}\n' \
                "$(quoted "$fault; $remedy")" "$EXIT_WRONG"
            break
        fi
    done
}

quoted() {
    local text=${1//\\/\\\\}
    echo "${text//\"/\\\"}"
}

has_python() {
    local python
    for python in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if is_recent "$python"; then return 0; fi
    done
    return 1
}

# The fork that asks takes some milliseconds, an old Python's traceback is no answer.
is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null
}

main "$@"
