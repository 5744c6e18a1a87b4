#!/usr/bin/env bash
# Runs the tests with the versions of a file of constraints beside this script, in a new virtual environment:
#
#   tests/constraints/run.sh oldest python3.10 [words for pytest, such as -m unit]
#   tests/constraints/run.sh torch-2.11 python3.12
#
# The environment is in $VENV, else in /tmp/convrepro-NAME; it takes about 6 GB with the CUDA libraries of torch's wheel.
set -euo pipefail
name=${1:?a name of constraints, such as oldest} python=${2:?a Python, such as python3.10}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
venv=${VENV:-/tmp/convrepro-$name}

"$python" -m venv "$venv"
export PATH=$venv/bin:$PATH
pip install --quiet --upgrade pip  # older ones search for hours
pip install --quiet --constraint "$here/$name.txt" --editable "$root[test]"
cd "$root"
pytest -q -n 2 "$@"
