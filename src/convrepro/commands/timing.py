"""The command that times: bench."""

import argparse
from typing import Any


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

    from convrepro import bench
    from convrepro.result import write_json
    from convrepro.tables import load_table

    setting = bench.Setting(
        arguments.batch_size,
        arguments.threads,
        not arguments.nchw,
        arguments.rounds,
        tuple(mode for mode in arguments.modes.split(",") if mode),
    )
    rows = [row for row in arguments.rows.split(",") if row]

    def show(timing: bench.Timing) -> None:
        print(bench.line(timing), flush=True)

    if arguments.what == ["all"]:
        from convrepro.speed import run_suite

        timings = run_suite(setting, arguments.only, show)
    elif any("=" in word for word in arguments.what):
        timed = bench.bench_network(arguments.what, setting)
        show(timed)
        timings = [timed.as_json()]
    else:
        tables = [load_table(name) for name in arguments.what]
        timings = [timing.as_json() for table in tables for timing in bench.bench_table(table, rows, setting, show)]
    if arguments.json:
        write_json(Path(arguments.json), bench.record(" ".join(arguments.what), timings, setting))
        print(arguments.json)
    return 0
