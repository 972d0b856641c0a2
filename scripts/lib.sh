# shellcheck shell=bash
# What the start scripts share. Sourced, with the checkout as working directory.

# service_settings <section.key...> <service...>: for each service that this version has, a line with its name and their
# values, from the environment, .env and its TOML file. The service's own message and status 78 when one is wrong. All at
# once, because Python and the settings take longer to load than to answer.
service_settings() {
    .venv/bin/python - "$@" <<'EOF'
import sys
from operator import attrgetter

from config.errors import ConfigurationError
from models.precision import known_precisions, profile_of

keys, *services = sys.argv[1:]
for service in services:
    if service in known_precisions() and profile_of(service).loader is None:
        continue
    from config.settings import load_settings

    try:
        settings = load_settings(service)
    except ConfigurationError as error:
        print(f"flux-api-{service}: {error}", file=sys.stderr)
        sys.exit(78)
    print(service, *(attrgetter(key)(settings) for key in keys.split()))
EOF
}

# engines <precision>: the engines of its profile, with commas between. Asks any Python that is there, because --help
# needs no environment.
engines() {
    local candidate
    for candidate in .venv/bin/python "${PYTHON:-python3}"; do
        "$candidate" -c '
import sys
from models.precision import profile_of
print(*profile_of(sys.argv[1]).engines, sep=", ")' "$1" 2> /dev/null && return
    done
    return 1
}

# setting <NAME...>: the value of each in the environment, else in .env, else nothing; a line for each.
setting() {
    .venv/bin/python -c '
import os, sys
from dotenv import dotenv_values
file = dotenv_values(".env")
for name in sys.argv[1:]:
    print(*(os.environ.get(name) or file.get(name) or "").splitlines())' "$@"
}

# is_port <text>: a TCP port, 1 to 65535.
is_port() {
    [[ $1 =~ ^[0-9]{1,5}$ ]] && ((10#$1 >= 1 && 10#$1 <= 65535))
}

# are_gpus <text>: distinct non-negative integers with commas between.
are_gpus() {
    [[ $1 =~ ^[0-9]{1,4}(,[0-9]{1,4})*$ ]] || return 1
    local index seen=,
    for index in ${1//,/ }; do
        index=$((10#$index))
        [[ $seen != *,$index,* ]] || return 1
        seen+=$index,
    done
}

# take_port --script|--page <path> <host> <port|auto> [start]: prints the port to use. An earlier
# instance that holds it is ended; anything else on it is named, with status 3.
take_port() {
    .venv/bin/python -m utils.port_guard "$1" "$2" --host "$3" --port "$4" ${5:+--start "$5"}
}

# answers <url>: whether a GET there is 200 within a few seconds. Bash asks by itself: this is done again and again while
# services start, and a Python each time would take from them what they need.
answers() {
    local address=${1#http://} path=/ host status=''
    if [[ $address == */* ]]; then path=/${address#*/}; fi
    address=${address%%/*}
    host=${address%:*}
    host=${host#[}
    (
        exec 3<> "/dev/tcp/${host%]}/${address##*:}"
        printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$address" >&3
        read -r -t 5 -u 3 _ status _
        while read -r -t 5 -u 3; do :; done # all of it: who is hung up on says so in its log
        [[ $status == 200 ]]
    ) 2> /dev/null
}
