"""The command that times: bench."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convrepro.evidence.speed import Pair, PairSpeed


def add(verbs: Any) -> None:
    """Add the verb of this module to an argument parser's."""
    verb = verbs.add_parser("bench", help="time beside MACs: rows of a table, or a network, against the dense one")
    verb.add_argument("what", nargs="+", help="a table, overrides such as model=resnet18 conv=hetconv conv.p=4, or all")
    verb.add_argument("--rows", default="", help="some rows only, comma-separated")
    verb.add_argument("--only", default="", help="of all: what has these letters in its group or name")
    modes = "what to time of train, inference and exported (default: the first two)"
    verb.add_argument("--modes", default="train,inference", help=modes)
    verb.add_argument("--batch-size", type=int, default=128, help="images in a batch (default: 128)")
    verb.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    verb.add_argument("--rounds", type=int, default=7, help="turns of candidate and baseline (default: 7)")
    verb.add_argument("--nchw", action="store_true", help="in NCHW instead of channels_last")
    verb.add_argument("--json", default="", help="write the timings, with hardware and versions, to this file")
    verb.set_defaults(execute=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.evidence import speed as bench
    from convrepro.runs.storage import write_json

    setting = bench.Setting(
        arguments.batch_size,
        arguments.threads,
        not arguments.nchw,
        arguments.rounds,
        tuple(mode for mode in arguments.modes.split(",") if mode),
    )
    environment = bench.where_and_how(setting)
    measured: list[dict[str, Any]] = []

    def note(timing: "PairSpeed") -> None:
        """Tell it, and write what is measured so far: an interruption loses none of it."""
        print(bench.line(timing), flush=True)
        measured.append(timing.as_json())
        if arguments.json:
            write_json(Path(arguments.json), bench.record(" ".join(arguments.what), measured, setting, environment))

    _, failures = bench.compare_all(_pairs(arguments), setting, note)
    if measured and arguments.json:
        print(arguments.json)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _pairs(arguments: argparse.Namespace) -> "list[Pair]":
    """What to time against what."""
    from convrepro.evidence import speed as bench
    from convrepro.evidence.speed_suite import suite
    from convrepro.tables import load_table

    if arguments.what == ["all"]:
        return [pair for pair in suite() if arguments.only in f"{pair.group}/{pair.name}"]
    if any("=" in word for word in arguments.what):
        return [bench.pair_of_network(arguments.what, arguments.batch_size)]
    rows = [row for row in arguments.rows.split(",") if row]
    tables = [load_table(name) for name in arguments.what]
    return [pair for table in tables for pair in bench.pairs_of_table(table, rows, arguments.batch_size)]
