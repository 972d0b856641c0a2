#!/usr/bin/env bash
# A fleet: the front door and this machine's replicas, or with --join this machine's replicas alone. --help
# lists the options.
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    # shellcheck source=scripts/lib.sh
    source scripts/lib.sh

    local port='' host='' join='' door=''
    while (($#)); do
        local flag=$1 value
        shift
        case $flag in
            --gpus=* | --replicas=* | --precision=* | --port=* | --host=* | --model=* | --join=* | --node=*)
                set -- "${flag#*=}" "$@"
                flag=${flag%%=*}
                ;;
        esac
        case $flag in
            -h | --help)
                usage
                return
                ;;
            --door)
                door=yes
                continue
                ;;
            -g | --gpus | --replicas | --precision | -p | --port | --host | --model | --join | --node)
                (($#)) || wrong "$flag needs a value"
                value=$1
                shift
                ;;
            *) wrong "unknown option '$flag'" ;;
        esac
        case $flag in
            -g | --gpus)
                are_gpus "$value" || wrong "$flag takes GPU indices with commas between, each once, such as 0 or 1,2; not '$value'"
                export FLUX_GPUS=$value
                ;;
            --replicas)
                [[ $value =~ ^[1-8]$ ]] || wrong "$flag takes a number from 1 to 8; not '$value'"
                export FLUX_FAKE_GPUS=$value
                ;;
            --precision)
                [[ $value =~ ^[a-z0-9]+$ ]] || wrong "$flag takes a precision such as $(precisions); not '$value'"
                export FLUX_FLEET_PRECISION=$value
                ;;
            -p | --port)
                [[ $value == auto ]] || is_port "$value" || wrong "$flag takes a port from 1 to 65535, or auto; not '$value'"
                port=$value
                ;;
            --host)
                [[ -n $value && $value != -* ]] || wrong "$flag takes an address to listen on, such as 127.0.0.1; not '$value'"
                host=$value
                export FLUX_HOST=$value
                ;;
            --model)
                [[ -n $value && $value != -* ]] || wrong "$flag takes a model id from config/models.toml; not '$value'"
                export FLUX_MODEL=$value
                ;;
            --node)
                [[ -n $value && $value != -* ]] || wrong "$flag takes a name for this machine; not '$value'"
                export FLUX_FLEET_NODE=$value
                ;;
            --join)
                [[ -n $value && $value != -* ]] || wrong "$flag takes the address of the fleet's first machine, host or host:port; not '$value'"
                join=$value
                ;;
        esac
    done
    if [[ -n $door && -z $join ]]; then
        wrong "--door is for another front door of a fleet that runs; name its first machine with --join ADDRESS"
    fi
    if [[ -n $join && -z $door && -n $port$host ]]; then
        wrong "--port and --host are the front door's; leave them out with --join, or add --door for another front door"
    fi
    if [[ -n $port && $port != auto ]]; then export FLUX_PORT=$((10#$port)); fi

    set_up
    if [[ -z $(setting FLUX_FAKE_GPUS FLUX_GPUS FLUX_DEVICE) ]] && ! has_gpu; then
        export FLUX_FAKE_GPUS=2
    fi
    if [[ -n $door ]]; then
        export FLUX_FLEET_JOIN=$join
    elif [[ -n $join ]]; then
        exec .venv/bin/python -m utils.fleet.join "$join"
    fi
    choose_port
    exec .venv/bin/python main_fleet.py # so that signals reach it
}

# It may take minutes, and bash, told to stop, would leave it behind: in a group of its own it is ended as a whole.
set_up() {
    local setup
    set -m
    scripts/setup_env.sh --fleet &
    set +m
    setup=$!
    trap 'kill -TERM -- "-$setup" 2> /dev/null || true; exit 143' TERM HUP
    trap 'kill -TERM -- "-$setup" 2> /dev/null || true; exit 130' INT
    wait "$setup" || exit
    trap - TERM HUP INT
}

usage() {
    cat <<EOF
Usage: ./start_fleet.sh [options]
       ./start_fleet.sh --join ADDRESS [options]
       ./start_fleet.sh --door --join ADDRESS [options]

Starts a fleet in the foreground: its front door on port 8002 and a replica on every GPU of this machine, or
two on the CPU. With --join this machine's replicas become a part of the fleet at ADDRESS; with --door as well
another front door does, without replicas. Ctrl-C ends it.

      --join ADDRESS     host, or host:port, of the fleet's first machine; its data/fleet/token must be here
                         too, or FLUX_FLEET_TOKEN
      --door             another front door of that fleet, over the same PostgreSQL database (FLUX_DATABASE_URL)
  -g, --gpus 0|1,2,...   a replica on each of these GPUs (default: on every GPU)
      --replicas N       N replicas on the CPU in place of GPUs, 1 to 8 (default without a GPU: 2)
      --precision NAME   $(precisions) (default: FLUX_FLEET_PRECISION, else the first)
      --node NAME        what this machine is called in the fleet (default: its host name)
  -p, --port N|auto      port of the front door, 1 to 65535; auto: the next free one (default: FLEET_PORT from
                         the environment, else the port in config/fleet.toml)
      --host H           its address to listen on (default: 127.0.0.1; any other needs a key)
      --model ID         default model, an id from config/models.toml
  -h, --help             this text

A flag wins over the environment. .env.example lists every other setting; docs/fleet.md tells the rest.
EOF
}

wrong() {
    echo "start_fleet.sh: $1" >&2
    echo "Accepted: --join ADDRESS  --door  -g/--gpus 0|1,2,...  --replicas N  --precision NAME  --node NAME  -p/--port N|auto  --host H  --model ID  --help" >&2
    exit 2
}

# The precisions there are, with commas between. --help needs no environment.
precisions() {
    local candidate
    for candidate in .venv/bin/python "${PYTHON:-python3}"; do
        "$candidate" -c 'from models.precision import known_precisions; print(*known_precisions(), sep=", ")' 2> /dev/null && return
    done
    echo 'those of the services'
}

has_gpu() {
    .venv/bin/python -c '
import sys
from utils.gpu_manager import is_apple_silicon, list_gpus
sys.exit(not (list_gpus()[0] or is_apple_silicon()))'
}

choose_port() {
    local found host configured
    found=$(service_settings 'server.host server.port' fleet)
    read -r _ host configured <<< "$found"
    # Assigned first: export would hide a failure.
    if [[ $port == auto ]]; then
        FLUX_PORT=$(take_port --script main_fleet.py "$host" auto "$configured")
        echo "start_fleet.sh: using port $FLUX_PORT" >&2
    else
        FLUX_PORT=$(take_port --script main_fleet.py "$host" "$configured")
    fi
    export FLUX_PORT
}

main "$@"
