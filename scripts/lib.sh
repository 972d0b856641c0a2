# shellcheck shell=bash
# What the start scripts share. Sourced, with the checkout as working directory.

# service_address <precision>: "host port" as the service itself will read them.
service_address() {
    service_settings "$1" 'server.host server.port'
}

# service_settings <precision> <section.key...>: their values from the environment, .env and the
# service's TOML file, in one line. The service's own message and status 78 when one is wrong.
service_settings() {
    .venv/bin/python - "$@" <<'EOF'
import sys
from operator import attrgetter

from config.errors import ConfigurationError
from config.settings import load_settings

precision, keys = sys.argv[1:]
try:
    settings = load_settings(precision)
except ConfigurationError as error:
    print(f"flux-api-{precision}: {error}", file=sys.stderr)
    sys.exit(78)
print(*(attrgetter(key)(settings) for key in keys.split()))
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

# is_built <precision>: whether this version can load models in it.
is_built() {
    .venv/bin/python -c 'import sys; from models.precision import profile_of; sys.exit(profile_of(sys.argv[1]).loader is None)' "$1"
}

# setting <NAME>: its value in the environment, else in .env, else nothing.
setting() {
    .venv/bin/python -c '
import os, sys
from dotenv import dotenv_values
print(os.environ.get(sys.argv[1]) or dotenv_values(".env").get(sys.argv[1]) or "")' "$1"
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

# http_get <url>: prints the body; false unless the answer is 200 within a few seconds.
http_get() {
    .venv/bin/python - "$1" 2> /dev/null <<'EOF'
import sys
from urllib.request import ProxyHandler, build_opener

direct = build_opener(ProxyHandler({}))  # never by way of a proxy: it asks this machine
sys.stdout.write(direct.open(sys.argv[1], timeout=5).read().decode())
EOF
}
