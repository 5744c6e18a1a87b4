"""The command line: what there is, training, counting, evidence, coverage. Heavy imports wait until they are needed."""

import argparse
import os
import sys
from collections.abc import Sequence

from convrepro.errors import ConvReproError

DESCRIPTION = "Reproduces the tables of papers on efficient convolutions, on any timm model."
LISTS = ("tables", "models", "convs", "data", "recipes", "budgets", "trainers")


def parser() -> argparse.ArgumentParser:
    """The verbs and their options; Hydra overrides (key=value) are positional everywhere."""
    top = argparse.ArgumentParser(prog="convrepro", description=DESCRIPTION)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("list", help="what there is: tables, models, convs, data, recipes, budgets, trainers")
    verb.add_argument("what", nargs="?", default="tables", choices=LISTS)
    verb.add_argument("pattern", nargs="?", default="*", help="for models: a pattern such as 'resnet*'")

    verb = verbs.add_parser("show", help="a table: published values, sources, collected evidence, verdicts")
    verb.add_argument("table")

    verb = verbs.add_parser("count", help="MACs and parameters of tables, or of one network layer by layer")
    verb.add_argument("what", nargs="+", help="tables, all, or overrides such as model=resnet18 conv=hetconv conv.p=4")

    verb = verbs.add_parser("train", help="one run: any timm model, any operator")
    verb.add_argument("overrides", nargs="*", help="such as model=resnet18 conv=hetconv conv.p=4 data=cifar10")
    verb.add_argument("-m", "--multirun", action="store_true", help="sweep over comma-separated values")
    verb.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")

    verb = verbs.add_parser("run", help="a table's rows and seeds; finished ones are skipped, broken ones resumed")
    verb.add_argument("table")
    verb.add_argument("overrides", nargs="*", help="for every row, such as trainer=gpu data.root=/data")
    verb.add_argument("--budget", default="paper", help="paper, proxy or smoke (default: paper)")
    verb.add_argument("--rows", default="", help="some rows only, comma-separated")
    verb.add_argument("--seeds", default="", help="other seeds than the table's, comma-separated")
    verb.add_argument("--dry-run", action="store_true", help="print the train lines and stop")

    verb = verbs.add_parser("collect", help="gather finished runs at budget=paper into the evidence of a table")
    verb.add_argument("tables", nargs="+")
    verb.add_argument("--runs", default=os.environ.get("CONVREPRO_RUNS", "runs"), help="where the run folders are")

    verb = verbs.add_parser("report", help="write the papers' README pages and the scoreboard from the evidence")
    verb.add_argument("papers", nargs="*", help="default: all")
    verb.add_argument("--audit", action="store_true", help="write AUDIT.md instead: every static value, recounted")

    verb = verbs.add_parser("coverage", help="every operator in a network of each family: works, refused and why")
    verb.add_argument("--models", default="", help="other networks: comma-separated patterns such as 'resnet18,vgg*'")
    verb.add_argument("--convs", default="", help="some operators only, comma-separated")
    verb.add_argument("--out", default="", help="default: reproductions/coverage.json; COVERAGE.md goes beside it")
    return top


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command; overrides may stand before, between and after options."""
    command = parser()
    arguments, rest = command.parse_known_args(argv)
    if rest and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, with 1 where a run failed, or with 2 and one sentence for bad input."""
    arguments = parse(argv)
    try:
        sys.exit(VERBS[arguments.verb](arguments))
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("convrepro: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.what == "tables":
        from convrepro.tables import list_tables, load_table

        for name in list_tables():
            table = load_table(name)
            print(f"{name:24} {len(table.rows):3} rows  {table.title}")
    elif arguments.what == "models":
        from convrepro.models import list_models

        print("\n".join(list_models(arguments.pattern)))
    else:
        from convrepro.config import choices, describe

        group = arguments.what.removesuffix("s")
        for name in choices(group):
            print(f"{name:24} {describe(group, name)}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from convrepro.evidence import load_evidence
    from convrepro.tables import load_table, render_table

    table = load_table(arguments.table)
    statics, results = load_evidence(table)
    print(render_table(table, statics, results))
    return 0


def _count(arguments: argparse.Namespace) -> int:
    if any("=" in word for word in arguments.what):
        from convrepro.config import compose_config
        from convrepro.statics import count_network

        print(count_network(compose_config(arguments.what)))
        return 0
    from convrepro.tables import list_tables, load_table, render_table

    names = list_tables() if arguments.what == ["all"] else arguments.what
    tables = [load_table(name) for name in names]
    from convrepro.statics import count_table

    for table in tables:
        print(render_table(table, count_table(table, _status), {}, static_only=True))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from convrepro.config import compose_config

    if arguments.multirun:
        from convrepro.sweep import sweep

        return sweep(arguments.overrides)
    cfg = compose_config(arguments.overrides)
    if arguments.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(cfg), end="")
        return 0
    from convrepro.train import run

    run(cfg, arguments.overrides)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.config import compose_config
    from convrepro.tables import load_table, render_table

    table = load_table(arguments.table)
    runs = Path(compose_config(arguments.overrides).runs)
    seeds = _integers("--seeds", arguments.seeds) or table.seeds
    from convrepro.plan import plan

    rows = [row for row in arguments.rows.split(",") if row]
    jobs = plan(table, budget=arguments.budget, rows=rows, seeds=seeds, extra=arguments.overrides, runs=runs)
    if arguments.dry_run:
        print("\n".join(job.line for job in jobs))
        return 0
    from convrepro.runner import run_jobs, validate
    from convrepro.statics import count_table

    validate(jobs)
    results, failures = run_jobs(jobs, print)
    print(render_table(table, count_table(table, _status), results))
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise ConvReproError(f"{option} {text} must be whole numbers with commas between, such as 0,1,2") from None


def _collect(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.evidence import collect
    from convrepro.statics import count_table
    from convrepro.tables import load_table

    for name in arguments.tables:
        table = load_table(name)
        print(collect(table, Path(arguments.runs), count_table(table, _status)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if arguments.audit:
        from convrepro.audit import write_audit
        from convrepro.statics import row_count

        print(write_audit(row_count))
        return 0
    from convrepro.evidence import report, write_scoreboard
    from convrepro.statics import count_table
    from convrepro.tables import list_papers

    counted = {}

    def count(table):
        if table.name not in counted:
            counted[table.name] = count_table(table, _status)
        return counted[table.name]

    for paper in arguments.papers or list_papers():
        print(report(paper, count))
    print(write_scoreboard(count))
    return 0


def _coverage(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.coverage import RECORD, cover, operators
    from convrepro.coverage_record import crashes

    patterns = [pattern for pattern in arguments.models.split(",") if pattern]
    configs = operators([conv for conv in arguments.convs.split(",") if conv])
    broken = crashes(cover(patterns, configs, Path(arguments.out or RECORD)))
    for line in broken:
        print(f"crash: {line}", file=sys.stderr)
    return 1 if broken else 0


def _status(row: str) -> None:
    if sys.stderr.isatty():
        print(f"\rcounting {row:40}", end="\r", file=sys.stderr, flush=True)


VERBS = {
    "list": _list,
    "show": _show,
    "count": _count,
    "train": _train,
    "run": _run,
    "collect": _collect,
    "report": _report,
    "coverage": _coverage,
}

if __name__ == "__main__":
    main()
