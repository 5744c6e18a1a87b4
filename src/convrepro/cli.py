"""The command line. Each group of verbs has a module in `commands`; heavy imports wait until they are needed."""

import argparse
import os
import sys
from collections.abc import Sequence

from convrepro.commands import evidence, look, training
from convrepro.errors import ConvReproError

DESCRIPTION = "Reproduces the tables of papers on efficient convolutions, on any timm model."
GROUPS = (look, training, evidence)


def parser() -> argparse.ArgumentParser:
    """The verbs and their options; Hydra overrides (key=value) are positional everywhere."""
    top = argparse.ArgumentParser(prog="convrepro", description=DESCRIPTION)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in GROUPS:
        group.add(verbs)
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
        sys.exit(arguments.execute(arguments))
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("convrepro: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
