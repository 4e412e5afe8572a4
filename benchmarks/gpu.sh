#!/usr/bin/env bash
# All that one GPU has to show, in under ten minutes on an H200 (an estimate: not yet run on a GPU). Run it from anywhere:
#
#   bash benchmarks/gpu.sh                  tests marked `gpu`, then benchmarks/gpu.py; results in runs/gpu
#   ANYO_RL_DATA=data bash benchmarks/gpu.sh   with Office among the catalogs
#   bash benchmarks/gpu.sh --dry_run        the same with tiny shapes, on a CPU too
#
# PYTHON names the interpreter (.venv/bin/python), OUT the folder. The benchmarks run even where a test fails. An 8B
# takes 35 GB of disk while it runs (TMPDIR).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
OUT="${OUT:-runs/gpu}"
mkdir -p "$OUT"
"$PYTHON" -m pytest -q -m gpu tests/test_gpu.py 2>&1 | tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}
timeout 540 "$PYTHON" benchmarks/gpu.py --json "$OUT/gpu.json" "$@" 2>&1 | tee "$OUT/gpu.txt"
steps=${PIPESTATUS[0]}
echo "tests: exit $tests, benchmarks: exit $steps (124: stopped after nine minutes); see $OUT"
exit $((tests > steps ? tests : steps))
