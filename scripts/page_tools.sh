#!/usr/bin/env bash
# Tools for checking the page, from npm: tsc reads its types, axe looks at its accessibility. The page
# itself needs none of them. They go into .venv/page-tools.
set -euo pipefail

readonly TYPESCRIPT=5.9.3 AXE=4.14.1

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    local folder=.venv/page-tools stamp="typescript $TYPESCRIPT, axe-core $AXE"
    if [[ -f $folder/stamp && $(< "$folder/stamp") == "$stamp" ]]; then return; fi
    if ! command -v npm > /dev/null; then
        echo "page_tools.sh: npm is missing; scripts/test.sh installs it on Debian, else install Node.js 20 or later by hand" >&2
        exit 1
    fi
    mkdir -p "$folder"
    npm install --prefix "$folder" --no-save --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error \
        "typescript@$TYPESCRIPT" "axe-core@$AXE" > /dev/null
    echo "$stamp" > "$folder/stamp"
}

main "$@"
