#!/usr/bin/env bash
# Sets up the environment and starts everything: the services, and the page that shows them.
# Ctrl-C ends all of it.
set -euo pipefail

READY_SECONDS=240 # a start that takes longer has failed
STOP_SECONDS=30   # a service finishes the picture it is drawing within this

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    # shellcheck source=scripts/lib.sh
    source scripts/lib.sh
    case "${1-}" in
        '') ;;
        -h | --help)
            usage
            return
            ;;
        *) give_up 2 "unknown option '$1'; accepted is --help. The environment sets the rest, see ./start.sh --help" ;;
    esac

    names=() pids=() logs=() is_up=0
    trap stop_all EXIT
    trap 'echo "start.sh: ending everything" >&2 || true; exit 0' INT TERM HUP

    run_in_own_group scripts/setup_env.sh
    names+=(setup) pids+=("$!") logs+=('')
    wait "$!" || give_up "$?" "the environment could not be set up"
    names=() pids=() logs=()

    local said given page_port page_url
    said=$(setting PAGE_PORT FLUX_PORT FLUX_PAGE_ORIGINS FLUX_CONSOLE_LEVEL FLUX_LOG_TO_FILE)
    mapfile -t given <<< "$said"
    page_port=${given[0]:-9000}
    is_port "$page_port" || give_up 2 "PAGE_PORT takes a port from 1 to 65535, not '$page_port'"
    page_port=$((10#$page_port))
    page_url=http://127.0.0.1:$page_port/
    read_service_addresses "$page_port" "${given[1]-}"
    if [[ -z ${given[2]-} ]]; then
        FLUX_PAGE_ORIGINS=$(page_origins "$page_port")
        export FLUX_PAGE_ORIGINS
    fi
    # First of all, so that an earlier instance does not answer in place of the new one.
    take_port --page frontend 127.0.0.1 "$page_port" > /dev/null
    take_service_ports

    # Each service writes its log itself, and rotates it; nobody rotates what it says beside that.
    if [[ -z ${given[3]-}${given[4]-} ]]; then
        export FLUX_CONSOLE_LEVEL=warning
    fi
    mkdir -p logs
    launch "the FP4 service" fp4 ./start_fp4_api.sh
    launch "the BF16 service" bf16 ./start_bf16_api.sh
    launch "the page" page .venv/bin/python -m http.server "$page_port" --bind 127.0.0.1 --directory frontend
    await "the page" page "$page_url"
    local precision
    for precision in "${built[@]}"; do
        await "the ${precision^^} service" "$precision" "${urls[$precision]}/health/ready"
    done
    page_url+=$(service_query)
    introduce "$page_url"
    is_up=1

    while true; do
        look_after_children
        pause 1
    done
}

usage() {
    cat <<'EOF'
Usage: ./start.sh

Sets up .venv, starts the services and the page, waits until they answer, and says where they are.
Ctrl-C ends everything. Logs are in logs/ (scripts/manage_logs.sh follow). From the environment, or .env:

  BF16_PORT   the BF16 service (default 8001)
  FP4_PORT    the FP4 service (default 8000)
  PAGE_PORT   the page (default 9000)

and every setting of .env.example, for both services. PYTHON, in the environment, names the Python to
make .venv with.
One service alone: ./start_bf16_api.sh --help
EOF
}

# page_origins <port of the page>: from where the page may call the services. Each service serves the page too.
page_origins() {
    local port precision origins=()
    for precision in "${built[@]}"; do set -- "$@" "${urls[$precision]##*:}"; done
    for port in "$@"; do origins+=("http://127.0.0.1:$port" "http://localhost:$port"); done
    local IFS=,
    echo "${origins[*]}"
}

# The page looks for the services on their usual ports unless it is told others, or that there is none.
service_query() {
    local precision query=()
    local -A usual=([fp4]=http://127.0.0.1:8000 [bf16]=http://127.0.0.1:8001)
    for precision in fp4 bf16; do
        if [[ ${urls[$precision]-} != "${usual[$precision]}" ]]; then query+=("$precision=${urls[$precision]-}"); fi
    done
    local IFS='&'
    if ((${#query[@]})); then echo "?${query[*]}"; fi
}

# read_service_addresses <port of the page> <FLUX_PORT>: fills `built` with the services that this version has,
# `addresses` with host and port of each and `urls` with what to call.
read_service_addresses() {
    declare -gA addresses=() urls=()
    built=()
    local found precision host port
    local -A holders=([$1]=PAGE_PORT)
    found=$(service_settings 'server.host server.port' fp4 bf16) # of one that is not built its start script says so
    while read -r precision host port; do
        built+=("$precision")
        addresses[$precision]="$host $port"
    done <<< "$found"
    if ((${#built[@]} > 1)) && [[ -n $2 ]]; then
        give_up 2 "FLUX_PORT gives both services one port; set BF16_PORT and FP4_PORT in its place"
    fi
    for precision in "${built[@]}"; do
        read -r host port <<< "${addresses[$precision]}"
        if [[ -n ${holders[$port]-} ]]; then
            give_up 2 "${holders[$port]} and ${precision^^}_PORT are both $port; give each a port of its own"
        fi
        holders[$port]=${precision^^}_PORT
        urls[$precision]=http://$(host_to_call "$host"):$port
    done
}

take_service_ports() {
    local precision host port
    for precision in "${built[@]}"; do
        read -r host port <<< "${addresses[$precision]}"
        take_port --script "main_$precision.py" "$host" "$port" > /dev/null
    done
}

# A service may listen on every address, which is none to call; IPv6 stands in brackets.
host_to_call() {
    case $1 in
        0.0.0.0) echo 127.0.0.1 ;;
        ::) echo '[::1]' ;;
        *:*) echo "[$1]" ;;
        *) echo "$1" ;;
    esac
}

# Job control gives the command a process group of its own: a Ctrl-C reaches this script alone,
# which then ends the rest in order, and a group can be ended as a whole.
run_in_own_group() {
    set -m
    "$@" &
    set +m
}

# launch <name> <log> <command...>: what it says besides its log goes to logs/<log>.out
launch() {
    local name=$1 log=logs/$2.out
    shift 2
    if [[ -e $log ]]; then mv -f "$log" "$log.1"; fi
    run_in_own_group "$@" > "$log" 2>&1 < /dev/null
    names+=("$name") pids+=("$!") logs+=("$log")
}

# await <name> <log> <url>
await() {
    local deadline=$((SECONDS + READY_SECONDS))
    until answers "$3"; do
        look_after_children
        if ((SECONDS >= deadline)); then
            show_log "logs/$2.out"
            give_up 1 "$1 did not answer at $3 within $READY_SECONDS seconds"
        fi
        pause 0.3
    done
    look_after_children # what answered must be ours
}

# A child that ended ends everything, with two exceptions: a service that says it is not built (status
# 69), and one of several services that were up, because they do not need each other.
look_after_children() {
    local i status
    for i in "${!pids[@]}"; do
        if kill -0 "${pids[i]}" 2> /dev/null; then continue; fi
        status=0
        wait "${pids[i]}" || status=$?
        if ((status == 69)); then
            tail -n 1 "${logs[i]}"
            forget "$i"
            continue
        fi
        show_log "${logs[i]}"
        if ((is_up)) && [[ ${names[i]} == *service && $(services_but "$i") ]]; then
            echo "start.sh: ${names[i]} ended (exit status $status); going on without it: $(services_but "$i")" >&2
            forget "$i"
            continue
        fi
        give_up 1 "${names[i]} ended (exit status $status)"
    done
}

# services_but <index>: the other services that run, with commas between.
services_but() {
    local i others=''
    for i in "${!names[@]}"; do
        if ((i != $1)) && [[ ${names[i]} == *service ]]; then others+="${others:+, }${names[i]}"; fi
    done
    echo "$others"
}

forget() {
    unset "names[$1]" "pids[$1]" "logs[$1]"
}

show_log() {
    echo "--- the end of $1" >&2
    tail -n 25 "$1" >&2
    echo "---" >&2
}

introduce() {
    local page_url=$1 url=${urls[bf16]} precision models called=()
    for precision in "${built[@]}"; do called+=("${urls[$precision]}"); done
    mapfile -t models < <(default_models "${called[@]}")
    echo
    echo "FLUX API is up; Ctrl-C ends it."
    echo
    echo "  page     $page_url"
    for precision in "${built[@]}"; do
        printf '  %-8s %s    (its HTTP reference: %s/docs)\n' "${precision^^}" "${urls[$precision]}" "${urls[$precision]}"
        printf '  %-8s %s\n' model "${models[0]-}"
        models=("${models[@]:1}")
    done
    cat <<EOF
  logs     logs/

A picture from the command line:

  curl -s '$url/generate?format=raw' -H 'Content-Type: application/json' -d '{"prompt": "a red balloon over green hills at sunset", "seed": 7}' -o picture.png

EOF
}

# default_models <url...>: what each service draws with, and why; a line for each.
default_models() {
    .venv/bin/python - "$@" <<'EOF'
import json
import sys
from urllib.request import ProxyHandler, build_opener

direct = build_opener(ProxyHandler({}))  # never by way of a proxy: it asks this machine
for url in sys.argv[1:]:
    try:
        info = json.load(direct.open(f"{url}/info", timeout=30))
        print(f"{info['default_model']}: {info['default_model_reason']}")
    except (OSError, ValueError, LookupError, TypeError):
        print(f"GET {url}/info tells its model (it asks for the API key)")
EOF
}

# In the background, because a trap runs only once a command in the foreground has ended.
pause() {
    sleep "$1" &
    wait "$!" || true
}

# Ends all that was started, in its own time first. Runs at every exit.
stop_all() {
    trap '' INT TERM HUP
    ((${#pids[@]})) || return 0
    local pid deadline=$((SECONDS + STOP_SECONDS))
    kill -TERM "${pids[@]}" 2> /dev/null || true
    for pid in "${pids[@]}"; do
        while kill -0 "$pid" 2> /dev/null && ((SECONDS < deadline)); do sleep 0.1; done
        kill -KILL -- "-$pid" 2> /dev/null || true # what is left of its group
        wait "$pid" 2> /dev/null || true
    done
}

give_up() {
    local status=$1
    shift
    echo "start.sh: $*" >&2
    exit "$status"
}

main "$@"
