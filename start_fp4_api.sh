#!/usr/bin/env bash
# The FP4 service alone; --help lists the options.
set -euo pipefail

main() {
    exec "$(dirname "${BASH_SOURCE[0]}")/scripts/start_service.sh" fp4 "$@"
}

main "$@"
