#!/usr/bin/env bash
# Checks raysat on a GPU and times it, in at most 8 minutes: bash benchmarks/gpu.sh [--list] [--output FILE]
# It needs Python, torch and numpy alone; raysat itself need not be installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if ! python3 -c "import jaxtyping" 2> /dev/null; then
    export PYTHONPATH="$PYTHONPATH:$root/benchmarks/standins"
fi
exec python3 -W ignore "$root/benchmarks/gpu.py" "$@"
