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
    local port='' python=.venv/bin/python
    while (($#)); do
        local flag=$1 value
        shift
        case $flag in
            --gpus=* | --gpu-mode=* | --port=* | --host=* | --model=* | --engine=*)
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
            -g | --gpus | --gpu-mode | -p | --port | --host | --model | --engine)
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
            --gpu-mode)
                [[ $value == each || $value == split ]] || wrong "$flag takes each or split; not '$value'"
                export FLUX_GPU_MODE=$value
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
            --engine)
                is_engine "$value" || wrong "$flag takes auto or an engine of this service, which are: $(engines "$precision"); not '$value'"
                export FLUX_ENGINE=$value
                ;;
        esac
    done
    if [[ -n $port && $port != auto ]]; then export FLUX_PORT=$((10#$port)); fi

    scripts/setup_env.sh
    local found engine host configured
    found=$(service_settings 'models.engine server.host server.port' "$precision")
    if [[ -n $found ]]; then # one that is not built says so itself, and takes no port
        read -r _ engine host configured <<< "$found"
        choose_environment
        choose_port
    fi
    exec "$python" "main_$precision.py" # so that signals reach it
}

usage() {
    cat <<EOF
Usage: ./$name [options]

Starts the ${precision^^} service in the foreground; Ctrl-C ends it.

  -g, --gpus 0|1,2,...   one worker on each of these GPUs (default: on every GPU; without one, the CPU)
      --gpu-mode MODE    each: a worker per GPU (default); split: one worker, its model spread over all GPUs
                         of -g (text encoders on the first, transformer on the last), for cards that are
                         too small alone
  -p, --port N|auto      port to listen on, 1 to 65535; auto: the next free one (default: ${precision^^}_PORT
                         from the environment, else the port in config/$precision.toml)
      --host H           address to listen on (default: 127.0.0.1; any other needs a key)
      --model ID         default model, an id from config/models.toml
      --engine NAME      what computes: $(engines "$precision"), or auto, the best that runs here (default:
                         FLUX_ENGINE, else auto)$(own_environments)
      --preload          load the default model at start, not at the first request
  -h, --help             this text

A flag wins over the environment. .env.example lists every other setting.
EOF
}

wrong() {
    echo "$name: $1" >&2
    echo "Accepted: -g/--gpus 0|1,2,...  --gpu-mode each|split  -p/--port N|auto  --host H  --model ID  --engine NAME  --preload  --help" >&2
    exit 2
}

# The engines that do not run in .venv, for the help.
own_environments() {
    local engine
    for engine in $(engines "$precision" | tr -d ,); do
        if has_own_environment "$engine"; then
            printf '\n%25s%s runs in .venv-%s, made at its first start' '' "$engine" "$engine"
        fi
    done
}

has_own_environment() {
    [[ -e requirements/$precision-$1.txt ]]
}

is_engine() {
    local known
    # Without any Python to ask it is the service that refuses a wrong one.
    known=$(engines "$precision") || return 0
    [[ $1 =~ ^[a-z0-9_]+$ && " auto, $known, " == *" $1, "* ]]
}

# An engine whose packages do not go with the others' has an environment of its own. Whether this
# machine can run it is asked first: the packages are gigabytes.
choose_environment() {
    has_own_environment "$engine" || return 0
    .venv/bin/python -m scripts.doctor --engine "$engine" >&2 || exit 78
    scripts/setup_env.sh "--$engine"
    python=.venv-$engine/bin/python
}

choose_port() {
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
