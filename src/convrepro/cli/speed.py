"""The command that measures speed: `bench`."""

import argparse
from os.path import expanduser
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import print_failures
from convrepro.cli.selection import comma_separated, describes_network, load_tables, whole
from convrepro.config.overrides import shown
from convrepro.errors import ConvReproError

if TYPE_CHECKING:
    from convrepro.evidence.speed import Pair, PairSpeed


def add(verbs: Any) -> None:
    """Adds the verb of this module to an argument parser."""
    verb = verbs.add_parser("bench", help="measure the speed of networks against the dense ones that they replace")
    what = "tables, papers, overrides such as model=resnet18 conv=hetconv conv.p=4, or all for the whole suite"
    verb.add_argument("what", nargs="+", help=what)
    verb.add_argument("--rows", default="", help="comma-separated rows of the table (default: all)")
    verb.add_argument("--only", default="", help="with `all`: only what has this text in its group or name")
    modes = "comma-separated modes of train, inference and exported (default: train,inference)"
    verb.add_argument("--modes", default="train,inference", help=modes)
    verb.add_argument("--batch-size", type=whole, default=128, help="images in a batch (default: 128)")
    verb.add_argument("--threads", type=whole, default=0, help="CPU threads (default: torch's choice)")
    verb.add_argument("--rounds", type=whole, default=7, help="how often candidate and baseline each run (default: 7)")
    verb.add_argument("--nchw", action="store_true", help="measure in NCHW memory format instead of channels_last")
    verb.add_argument(
        "--json", type=expanduser, default="", help="write the speeds, with hardware and versions, to this file"
    )
    verb.set_defaults(execute=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.evidence.speed import Setting, compare_all, line, record, where_and_how
    from convrepro.runs.storage import write_json

    setting = Setting(
        arguments.batch_size,
        arguments.threads,
        not arguments.nchw,
        arguments.rounds,
        tuple(comma_separated(arguments.modes)),
    )
    environment = where_and_how(setting)
    measured: list[dict[str, Any]] = []

    def note(speed: "PairSpeed") -> None:
        """Prints the speed, and writes all speeds measured so far, so that an interruption loses none of them."""
        print(line(speed), flush=True)
        measured.append(speed.as_json())
        if arguments.json:
            write_json(Path(arguments.json), record(" ".join(arguments.what), measured, setting, environment))

    _, failures = compare_all(_pairs(arguments), setting, note)
    if measured and arguments.json:
        print(arguments.json)
    return print_failures(failures)


def _pairs(arguments: argparse.Namespace) -> "list[Pair]":
    """The pairs of candidate and baseline that the arguments select."""
    from convrepro.evidence.speed import pair_of_network, pairs_of_table
    from convrepro.evidence.speed_suite import suite

    if arguments.what == ["all"]:
        pairs = suite()
        chosen = [pair for pair in pairs if arguments.only in f"{pair.group}/{pair.name}"]
        if not chosen:
            groups = ", ".join(dict.fromkeys(pair.group for pair in pairs))
            raise ConvReproError(f"--only {shown(arguments.only)} is in no name of the suite; its groups: {groups}")
        return chosen
    if describes_network(arguments.what):
        return [pair_of_network(arguments.what, arguments.batch_size)]
    rows, tables = comma_separated(arguments.rows), load_tables(arguments.what)
    return [pair for table in tables for pair in pairs_of_table(table, rows, arguments.batch_size)]
