"""Prints the progress and the failures of a command to standard error."""

import sys
from collections.abc import Mapping


def status_line(done: str) -> None:
    """Shows how much of something is done, where standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:48}", end="\r", file=sys.stderr, flush=True)


def print_failures(failures: Mapping[str, str]) -> int:
    """Prints each failure with its reason; returns the exit code of the command: 1 where something failed, else 0."""
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0
