#!/usr/bin/env bash
# Starts one service in the foreground: scripts/start_service.sh <precision> [options].
# start_bf16_api.sh and start_fp4_api.sh call it; flags become FLUX_* settings for main_<precision>.py.
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    # shellcheck source=scripts/lib.sh
    source scripts/lib.sh

    precision=$1
    shift
    name="start_${precision}_api.sh"
    local port=''
    while (($#)); do
        local flag=$1 value
        shift
        case $flag in
            --gpus=* | --port=* | --host=* | --model=*)
                set -- "${flag#*=}" "$@"
                flag=${flag%%=*}
                ;;
        esac
        case $flag in
            -h | --help)
                usage
                return
                ;;
            --preload)
                export FLUX_PRELOAD=true
                continue
                ;;
            -g | --gpus | -p | --port | --host | --model)
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
            -p | --port)
                [[ $value == auto ]] || is_port "$value" || wrong "$flag takes a port from 1 to 65535, or auto; not '$value'"
                port=$value
                ;;
            --host)
                [[ -n $value && $value != -* ]] || wrong "$flag takes an address to listen on, such as 127.0.0.1; not '$value'"
                export FLUX_HOST=$value
                ;;
            --model)
                [[ -n $value && $value != -* ]] || wrong "$flag takes a model id from config/models.toml; not '$value'"
                export FLUX_MODEL=$value
                ;;
        esac
    done
    if [[ -n $port && $port != auto ]]; then export FLUX_PORT=$((10#$port)); fi

    scripts/setup_env.sh
    if is_built; then choose_port; fi
    exec .venv/bin/python "main_$precision.py" # so that signals reach it
}

usage() {
    cat <<EOF
Usage: ./$name [options]

Starts the ${precision^^} service in the foreground; Ctrl-C ends it.

  -g, --gpus 0|1,2,...   one worker on each of these GPUs (default: on every GPU; without one, the CPU)
  -p, --port N|auto      port to listen on, 1 to 65535; auto: the next free one (default: ${precision^^}_PORT
                         from the environment, else the port in config/$precision.toml)
      --host H           address to listen on (default: 127.0.0.1; any other needs FLUX_API_KEYS)
      --model ID         default model, an id from config/models.toml
      --preload          load the default model at start, not at the first request
  -h, --help             this text

A flag wins over the environment. .env.example lists every other setting.
EOF
}

wrong() {
    echo "$name: $1" >&2
    echo "Accepted: -g/--gpus 0|1,2,...  -p/--port N|auto  --host H  --model ID  --preload  --help" >&2
    exit 2
}

# Distinct non-negative integers with commas between.
are_gpus() {
    [[ $1 =~ ^[0-9]{1,4}(,[0-9]{1,4})*$ ]] || return 1
    local index seen=,
    for index in ${1//,/ }; do
        index=$((10#$index))
        [[ $seen != *,$index,* ]] || return 1
        seen+=$index,
    done
}

# A service that is not built says so itself; it takes no port.
is_built() {
    .venv/bin/python -c 'import sys; from models.precision import profile_of; sys.exit(profile_of(sys.argv[1]).loader is None)' "$precision"
}

choose_port() {
    local address host configured
    address=$(service_address "$precision")
    read -r host configured <<< "$address"
    # Assigned first: export would hide a failure.
    if [[ $port == auto ]]; then
        FLUX_PORT=$(take_port --script "main_$precision.py" "$host" auto "$configured")
        echo "$name: using port $FLUX_PORT" >&2
    else
        FLUX_PORT=$(take_port --script "main_$precision.py" "$host" "$configured")
    fi
    export FLUX_PORT
}

main "$@"
