#!/usr/bin/env bash
# Writes requirements/*.txt, the locked requirements with their hashes, from pyproject.toml.
# Versions that are locked already stay as they are; --upgrade renews them.
set -euo pipefail

PIP_TOOLS='pip-tools==7.6.2'
OLDEST_PYTHON=python3.11 # what is locked must run on the oldest Python that is supported

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local upgrade=()
    case "${1-}" in
        '') ;;
        --upgrade) upgrade=(--upgrade) ;;
        *)
            echo "lock.sh: unknown option '$1'; accepted is --upgrade" >&2
            exit 2
            ;;
    esac
    if ! "$OLDEST_PYTHON" -c '' 2>/dev/null; then
        echo "lock.sh: $OLDEST_PYTHON is needed" >&2
        exit 1
    fi

    tools="$(mktemp -d)"
    trap 'rm -rf "$tools"' EXIT
    "$OLDEST_PYTHON" -m venv "$tools/venv"
    "$tools/venv/bin/python" -m pip install -q "$PIP_TOOLS"

    mkdir -p requirements
    lock_torch > "$tools/torch.txt"
    lock runtime '# What the services need, but for torch: see torch.txt.' "${upgrade[@]}"
    lock fleet '# The same and what a fleet needs, but for torch: see torch.txt.' --extra fleet "${upgrade[@]}"
    lock dev '# The same and what the tests need, but for torch: see torch.txt.' --extra fleet --extra dev "${upgrade[@]}"
    mv "$tools/torch.txt" requirements/torch.txt
}

# lock <name> <heading> [options of pip-compile]
lock() {
    local name=$1 heading=$2
    shift 2
    # A set that is new has the versions that the others have.
    cp requirements/"$name".txt "$tools/$name.txt" 2> /dev/null || cp requirements/dev.txt "$tools/$name.txt" 2> /dev/null || true
    # The --no-emit options and the header keep this machine's indexes and folders out of the file.
    "$tools/venv/bin/pip-compile" "$@" pyproject.toml --output-file "$tools/$name.txt" \
        --quiet --generate-hashes --strip-extras --no-header --no-emit-options \
        --unsafe-package torch --annotation-style line
    {
        printf '%s\n# Written by scripts/lock.sh; installed by scripts/setup_env.sh with --no-deps.\n\n' "$heading"
        without_cuda "$tools/$name.txt"
    } > requirements/"$name".txt
}

# CUDA's libraries come with torch's ordinary build and follow it, so they are not locked here.
# Nor are pip-compile's notes on what it left out.
without_cuda() {
    awk '
        /^[^ #]/ { skip = ($0 ~ /^(nvidia-|cuda-|triton)/ && $0 !~ /^nvidia-ml-py=/) }
        !skip && NF && !/^#/
    ' "$1"
}

# Every build that pip finds for the pinned version: the ordinary ones, and CPU builds where pip is
# told of a place that has them. Known hashes stay, so that a machine without such a place loses none.
lock_torch() {
    local pin
    pin=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
    cat <<EOF
# torch, apart from the rest and installed first.
#
# The same version comes in several builds: the ordinary one, which asks for gigabytes of CUDA
# libraries, and smaller ones for CPUs (torch==X+cpu), which a machine offers through its pip
# settings. A lock over both is impossible, because they need different packages. So torch stands
# here alone, without what it needs: the packages common to all builds are locked in runtime.txt
# and dev.txt, and the CUDA libraries that the installed build pins, each to an exact version,
# are fetched after them. Those libraries are the one part that is not checked against a hash.
#
# Written by scripts/lock.sh. Below are the hashes of the ordinary builds and of the CPU builds that
# were at hand; any other is refused. To use one all the same, install it before the first start:
#     python3 -m venv .venv && .venv/bin/python -m pip install <the build>

EOF
    "$tools/venv/bin/python" - "$pin" requirements/torch.txt <<'EOF'
import re
import sys
from pathlib import Path

from piptools.repositories import PyPIRepository

pin, old = sys.argv[1], Path(sys.argv[2])
name, version = pin.split("==")
repository = PyPIRepository([], cache_dir=Path(sys.executable).parent / "cache")
with repository.allow_all_wheels():
    hashes = {
        f"sha256:{candidate.link.hash}" if candidate.link.hash_name == "sha256" else repository._get_file_hash(candidate.link)
        for candidate in repository.find_all_candidates(name)
        if candidate.version.public == version
    }
if old.exists() and pin in old.read_text():
    hashes |= set(re.findall(r"--hash=(sha256:\w+)", old.read_text()))
if not hashes:
    sys.exit(f"lock.sh: pip finds no {pin}")
print(pin, *(f"    --hash={item}" for item in sorted(hashes)), sep=" \\\n")
EOF
}

main "$@"
