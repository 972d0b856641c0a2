# shellcheck shell=bash
# What the start scripts share. Sourced, with the checkout as working directory.

# service_address <precision>: "host port" as the service itself will read them from the
# environment, .env and its TOML file. Its own message and status 78 when they are wrong.
service_address() {
    .venv/bin/python - "$1" <<'EOF'
import sys

from config.errors import ConfigurationError
from config.settings import load_settings

try:
    server = load_settings(sys.argv[1]).server
except ConfigurationError as error:
    print(f"flux-api-{sys.argv[1]}: {error}", file=sys.stderr)
    sys.exit(78)
print(server.host, server.port)
EOF
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
