#!/usr/bin/env bash
# What a container runs: the service that SERVICE names, or the command it is given.
#
#     docker run ... flux-api:cpu python -m scripts.keys make laptop
set -euo pipefail

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    if (($#)); then exec "$@"; fi
    local service=${SERVICE:-bf16}
    if [[ ! $service =~ ^[a-z0-9]+$ || ! -e main_$service.py ]]; then
        echo "run.sh: SERVICE takes $(services); not '$service'" >&2
        exit 78
    fi
    check_folders
    exec .venv/bin/python "main_$service.py"
}

# services: the names there are, with commas between.
services() {
    local names
    names=$(printf '%s\n' main_*.py | sed 's/^main_\(.*\)\.py$/\1/' | paste -sd, | sed 's/,/, /g')
    echo "$names"
}

# A folder of the host that is put in place of a volume belongs to whom it belongs there.
check_folders() {
    local folder
    for folder in data generated_images logs models_cache uploads/lora_files; do
        if [[ ! -w $folder ]]; then
            echo "run.sh: $PWD/$folder cannot be written by the user $(id -u) of this container." \
                "On the host: chown -R $(id -u):$(id -g) THE-FOLDER-THAT-IS-MOUNTED-THERE" >&2
            exit 78
        fi
    done
}

main "$@"
