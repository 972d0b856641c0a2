#!/usr/bin/env bash
# Makes .venv and installs the locked requirements into it, when they changed. --fleet adds what a fleet
# needs, --dev that and what the tests need. --nunchaku makes .venv-nunchaku instead, the environment of the FP4 engine nunchaku.
# --check makes nothing and says by its exit status whether it is there. PYTHON names the Python to make it with.
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local only_check=0
    if [[ ${1-} == --check ]]; then
        only_check=1
        shift
    fi
    kind=runtime
    venv=.venv
    lists=(requirements/torch.txt requirements/runtime.txt requirements/fleet.txt requirements/dev.txt)
    pythons='3.11 or later' too_new='(4,)' by_hand=''
    case "${1-}" in
        '') ;;
        --fleet) kind=fleet ;;
        --dev) kind=dev ;;
        --nunchaku)
            kind=nunchaku
            venv=.venv-nunchaku
            lists=(requirements/fp4-nunchaku.txt)
            pythons='3.11 to 3.13' too_new='(3, 14)'
            by_hand="python3 -m venv $venv && $venv/bin/python -m pip install -r ${lists[0]}"
            ;;
        -h | --help)
            echo "Usage: scripts/setup_env.sh [--check] [--fleet | --dev | --nunchaku]"
            return
            ;;
        *) die 2 "unknown option '$1'; accepted is --fleet, --dev or --nunchaku" ;;
    esac
    stamp=$venv/.installed       # what is installed: "<kind> <checksum of the requirements>"
    unfinished=$venv/.installing # there while an installation runs, and after one that was cut off

    local checksum
    checksum=$(cat "${lists[@]}" | cksum | tr ' ' -)
    if is_ready "$checksum"; then return; fi
    if ((only_check)); then return 1; fi
    # A service of the system reads the checkout and no more.
    [[ -w . ]] || die 78 "$venv is not as this checkout needs it, and nothing can be written to $PWD from here." \
        "Run scripts/setup_env.sh${1+ $1} as the checkout's owner."
    wait_for_turn
    if is_ready "$checksum"; then return; fi # another run has just done it
    if must_rebuild; then make_venv; fi
    install
    echo "$kind $checksum" > "$stamp"
    rm -f "$unfinished"
    say "ready"
}

# Each set holds those before it: the runtime's, the fleet's, the development's.
is_ready() {
    local checksum=$1 installed
    [[ ! -e $unfinished ]] || return 1
    if [[ ! -e $stamp ]]; then
        [[ $kind == nunchaku ]] && was_made_by_hand
        return
    fi
    installed=$(cat "$stamp")
    [[ ${installed#* } == "$checksum" ]] || return 1
    case $kind:${installed%% *} in
        "$kind:$kind" | *:dev | runtime:fleet) works "$venv/bin/python" ;;
        *) return 1 ;;
    esac
}

# Drivers that stop at CUDA 12 need other builds, which the doctor names: they are left as they are.
was_made_by_hand() {
    works "$venv/bin/python" && "$venv/bin/python" -c '
import sys
from models.fp4.nunchaku_support import why_no_package
sys.exit(why_no_package() is not None)'
}

# One installation at a time. Where there is no flock, two at once are the user's to avoid.
wait_for_turn() {
    command -v flock > /dev/null || return 0
    exec 9> .venv.lock
    if ! flock --nonblock 9; then
        say "another setup is running: waiting for it"
        flock 9
    fi
}

must_rebuild() {
    if [[ ! -e $venv ]]; then return 0; fi
    if [[ -e $unfinished ]]; then
        say "an earlier installation did not finish: starting over"
        return 0
    fi
    if ! works "$venv/bin/python"; then
        say "$venv has no working Python of version $pythons: making it anew"
        return 0
    fi
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    if [[ $kind == nunchaku ]]; then check_wheel "$python"; fi
    rm -rf "$venv"
    mkdir "$venv"
    touch "$unfinished"
    "$python" -m venv "$venv" || die 1 "'$python -m venv $venv' failed"
}

# Whether there is a wheel for this machine, before anything is fetched.
check_wheel() {
    local reason
    reason=$("$1" -c '
import platform, sys
from models.fp4.nunchaku_support import why_no_wheel
print(why_no_wheel(sys.version_info[:2], platform.system(), platform.machine()) or "")')
    [[ -z $reason ]] || die 1 "$reason"
}

find_python() {
    local candidate outdated=''
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if works "$candidate"; then
            if ! "$candidate" -c 'import ensurepip, venv' 2> /dev/null; then
                die 1 "$(command -v "$candidate") lacks the modules venv and ensurepip." \
                    "Install them (Debian and Ubuntu: apt install python3-venv), then start again."
            fi
            echo "$candidate"
            return
        fi
        if [[ -n ${PYTHON-} && $candidate == "$PYTHON" ]]; then
            die 1 "PYTHON=$PYTHON does not run, or is not $pythons."
        fi
        outdated+="$("$candidate" -c 'import sys; print(" %s is %d.%d." % (sys.executable, *sys.version_info[:2]))' 2> /dev/null || true)"
    done
    die 1 "Python $pythons is needed and none was found.$outdated" \
        "Install it (Debian and Ubuntu: apt install python3 python3-venv)," \
        "or name one: PYTHON=/path/to/python3 ./start.sh"
}

works() {
    "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < $too_new)" 2> /dev/null
}

install() {
    local torch
    quiet=(--quiet)
    if [[ -t 2 ]]; then quiet=(); fi # progress bars for whoever watches
    rm -f "$stamp"
    touch "$unfinished"
    say "installing the $kind requirements into $venv; the first time this takes some minutes"
    if [[ $kind == nunchaku ]]; then
        pip install -r "${lists[0]}"
        return
    fi
    torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/torch.txt)
    has "$torch" || install_torch "$torch"
    pip install --require-hashes --no-deps -r requirements/"$kind".txt
    # What the installed build of torch wants besides: CUDA libraries, or nothing at all.
    pip install "$torch"
}

# Fetched first and checked then: asked to do both at once, pip prefers builds whose hash an index
# lists, and would pass over a CPU build that lies on this machine for gigabytes of CUDA.
install_torch() {
    local wheels=.venv/.wheels
    rm -rf "$wheels"
    pip download --no-deps --dest "$wheels" "$1"
    pip install --require-hashes --no-deps --no-index --find-links "$wheels" -r requirements/torch.txt
    rm -rf "$wheels"
}

# has <name==version>: whether that version is installed, in whichever build.
has() {
    .venv/bin/python -c '
import sys
from importlib.metadata import PackageNotFoundError, version
name, wanted = sys.argv[1].split("==")
try:
    sys.exit(version(name).split("+")[0] != wanted)
except PackageNotFoundError:
    sys.exit(1)' "$1"
}

# pip <command> <arguments...>
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$1" "${quiet[@]}" "${@:2}" >&2 ||
        die 1 "the installation failed, see above; the next start tries again${by_hand:+. By hand: $by_hand}"
}

say() {
    echo "setup: $*" >&2
}

die() {
    local status=$1
    shift
    say "$@"
    exit "$status"
}

main "$@"
