"""The command line. Each group of verbs has a module in this package, which imports torch only when it is needed."""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from convrepro.cli import cluster, dashboards, evidence, export, look, speed, training
from convrepro.errors import ConvReproError, Interrupted, SetAside, visible

DESCRIPTION = "Reproduces the tables of papers on efficient convolutions, on any timm model."
GROUPS = (look, training, cluster, evidence, dashboards, speed, export)


def parser() -> argparse.ArgumentParser:
    """The parser with all verbs and their options. Hydra overrides (key=value) are positional arguments."""
    top = argparse.ArgumentParser(prog="convrepro", description=DESCRIPTION)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in GROUPS:
        group.add(verbs)
    return top


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command. Overrides may be given before, between and after options, and flags of sbatch after `--`."""
    command = parser()
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    arguments, rest = command.parse_known_args(words[:end])
    if words[end:]:
        if not hasattr(arguments, "flags"):
            command.error(f"`convrepro {arguments.verb}` takes no arguments after --; only submit and resubmit do")
        arguments.flags = words[end + 1 :]
    if rest and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Executes a command and exits: with 0, with 1 where a run failed, or with 2 and one sentence for bad input.

    An interrupted run exits with 128 plus the number of its signal.
    """
    arguments = parse(argv)
    warnings.formatwarning = _one_line
    try:
        sys.exit(arguments.execute(arguments))
    except Interrupted as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(128 + (signal.SIGUSR1 if error.requeue else signal.SIGTERM))
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("convrepro: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as the command line prints it: what was set aside without the place in the code that noticed it."""
    if issubclass(category, SetAside):
        return f"convrepro: {visible(str(message))}\n"
    return _long(message, category, filename, lineno, line)


_long = warnings.formatwarning

if __name__ == "__main__":
    main()
