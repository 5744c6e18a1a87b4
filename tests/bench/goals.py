"""Measures the goals for speed: `python tests/bench/goals.py [--only PATTERNS] [--rounds 7] [--json FILE]`.

Each is a ratio of a candidate to a baseline, timed in turns in this process. Needs a machine with nothing else to do:
`other load` tells how many cores others kept busy. What was measured before an interruption is in the file.
"""

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

import operators
import suite
import torch
from goal import line

from convrepro.evidence.speed import Setting, record, where_and_how
from convrepro.runs.storage import write_json

THREADS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names of goals, such as 'hetconv-*,loop'")
    parser.add_argument("--rounds", type=int, default=7, help="turns of candidate and baseline (default: 7)")
    parser.add_argument("--profile", action="store_true", help="tell where a step's time goes instead of timing it")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    arguments = parser.parse_args()
    setting = Setting(operators.BATCH, THREADS, True, arguments.rounds)
    torch.set_num_threads(THREADS)
    everything = operators.goals() + suite.goals()
    patterns = arguments.only.split(",")
    chosen = [goal for goal in everything if any(fnmatch(goal.name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"--only={arguments.only} names no goal; valid: {', '.join(goal.name for goal in everything)}")
    what = "profiles" if arguments.profile else "goals"
    measured, environment = [], where_and_how(setting)
    for goal in chosen:
        torch.manual_seed(0)
        measured.append(goal.profile() if arguments.profile else goal.measure(arguments.rounds))
        print(measured[-1] if arguments.profile else line(measured[-1]), flush=True)
        if arguments.json:
            write_json(arguments.json, {**record(what, [], setting, environment), what: measured})
    return 0 if all(m.get("met", True) for m in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
