#!/usr/bin/env bash
# The BF16 service alone; --help lists the options.
set -euo pipefail

main() {
    exec "$(dirname "${BASH_SOURCE[0]}")/scripts/start_service.sh" bf16 "$@"
}

main "$@"
