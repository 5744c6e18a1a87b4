#!/bin/sh
# Runs the suite's checks and measurements on a GPU: tests/gpu/run.sh [--minutes 12] [--device cuda|cpu] [--out DIR]
# [--stages 1,2,3,4,5] [--overrides "trainer.compile=true"]. Each stage gets its share of the time and goes on where an
# earlier call was cut off (same --out). The overrides are for the runs of stage 4.
set -eu
minutes=12 device=cuda out=gpu-record stages=1,2,3,4,5 overrides=
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
python=${PYTHON:-python3}
begun=$(date +%s)

# Stage, script and share, in the order in which they run.
case $device in
  cuda) plan="2 speed 3.5, 1 correctness 2, 3 training 1, 5 candidates 1, 4 evidence 4.5" ;;
  *) plan="2 speed 3, 1 correctness 2, 3 training 3, 5 candidates 2, 4 evidence 4" && export TRITON_INTERPRET=1 ;;
esac
plan=$(echo "$plan" | tr , '\n' | awk -v stages=",$stages," 'index(stages, "," $1 ",")')
[ -n "$plan" ] || { echo "--stages $stages names no stage; valid: 1,2,3,4,5" >&2; exit 2; }
shares=$(echo "$plan" | awk '{sum += $3} END {print sum}')
all=$shares

# Each gets its share of the time that is left to those that are left; in a rehearsal, which may be slow, of all time.
while read -r stage script share; do
  spent=$(($(date +%s) - begun)) of=$shares words=
  [ "$device" = cuda ] || spent=0 of=$all
  seconds=$(awk "BEGIN {s = ($minutes * 60 - $spent) * $share / $of; print (s > 0) ? s : 0}")
  shares=$((shares - share))
  [ "$stage" != 4 ] || words=$overrides
  echo "Stage $stage: $script, $seconds seconds"
  # shellcheck disable=SC2086
  "$python" "$here/$script.py" --device "$device" --seconds "$seconds" --out "$out" $words </dev/null ||
    echo "stage $stage ended with status $?"
done <<END
$plan
END
