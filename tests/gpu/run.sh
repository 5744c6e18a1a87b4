#!/bin/sh
# Runs the suite's checks and measurements on a GPU: tests/gpu/run.sh [--minutes 12] [--device cuda|cpu] [--out DIR]
# [--stages 1,2]. Each stage gets its share of the time and goes on where an earlier call was cut off (same --out).
set -eu
minutes=12 device=cuda out=gpu-record stages=1,2
while [ $# -gt 0 ]; do
  case $1 in
    --minutes) minutes=$2 ;;
    --device) device=$2 ;;
    --out) out=$2 ;;
    --stages) stages=$2 ;;
    *) echo "unknown argument $1; valid: --minutes, --device, --out, --stages" >&2; exit 2 ;;
  esac
  shift 2
done
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ "$device" = cuda ] || export TRITON_INTERPRET=1
python=${PYTHON:-python3}

share() { # stage, script, fifteenths of the time
  case ,$stages, in *,$1,*) ;; *) return 0 ;; esac
  echo "Stage $1: $2"
  "$python" "$here/$2.py" --device "$device" --seconds "$(awk "BEGIN {print $minutes * 60 * $3 / 15}")" --out "$out" ||
    echo "stage $1 ended with status $?"
}

share 2 speed 10
share 1 correctness 5
for stage in 3 4; do
  case ,$stages, in *,$stage,*) echo "Stage $stage does not exist yet: see tests/gpu/README.md" >&2 ;; esac
done
