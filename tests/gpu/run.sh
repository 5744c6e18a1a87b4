#!/bin/sh
# Runs the suite's checks and measurements on a GPU: tests/gpu/run.sh [--minutes 12] [--device cuda|cpu] [--out DIR]
# [--stages 1,2,3,4] [--overrides "trainer.compile=true"]. Each stage gets its share of the time and goes on where an
# earlier call was cut off (same --out). The overrides are for the runs of stage 4.
set -eu
minutes=12 device=cuda out=gpu-record stages=1,2,3,4 overrides=
while [ $# -gt 0 ]; do
  case $1 in
    --minutes) minutes=$2 ;;
    --device) device=$2 ;;
    --out) out=$2 ;;
    --stages) stages=$2 ;;
    --overrides) overrides=$2 ;;
    *) echo "unknown argument $1; valid: --minutes, --device, --out, --stages, --overrides" >&2; exit 2 ;;
  esac
  shift 2
done
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
[ "$device" = cuda ] || export TRITON_INTERPRET=1
python=${PYTHON:-python3}
begun=$(date +%s)

wanted() { case ,$stages, in *,$1,*) ;; *) return 1 ;; esac; }

weights=0
wanted 2 && weights=$((weights + 4))
wanted 1 && weights=$((weights + 2))
wanted 3 && weights=$((weights + 1))
wanted 4 && weights=$((weights + 5))

stage() { # number, script, weight, further words: its share of the time that is left, of stages that are left
  number=$1 script=$2 weight=$3
  shift 3
  wanted "$number" || return 0
  left=$(awk "BEGIN {print $minutes * 60 - ($(date +%s) - $begun)}")
  seconds=$(awk "BEGIN {left = $left * $weight / $weights; print left > 0 ? left : 0}")
  weights=$((weights - weight))
  echo "Stage $number: $script, $seconds seconds"
  "$python" "$here/$script.py" --device "$device" --seconds "$seconds" --out "$out" "$@" ||
    echo "stage $number ended with status $?"
}

stage 2 speed 4
stage 1 correctness 2
stage 3 training 1
# shellcheck disable=SC2086
stage 4 evidence 5 $overrides
