#!/usr/bin/env bash
# Check attnviz on a GPU, in at most six minutes: the tests that need CUDA, then what captures cost there beside a plain
# forward, as one table. Where there is no GPU it says so and ends with exit code 2.
#
#   scripts/check_cuda.sh                     with the environment in .venv
#   PYTHON=python3 scripts/check_cuda.sh      with another one that has the extra `test`
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 PYTHONPATH=$PWD
python=${PYTHON:-.venv/bin/python}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device is here: nothing was checked" >&2
  exit 2
fi
tests=0
timeout 210 "$python" -m pytest -q -m cuda -n 0 --durations=5 || tests=$?
timeout 140 "$python" tests/benchmarks/cuda.py
exit "$tests"
