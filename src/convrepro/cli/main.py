"""The entry of the command line. It imports the rest where an interrupt is answered, even one in the first moment."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Executes a command and exits: with 0, with 1 where a run failed, or with 2 and one sentence for bad input.

    An interrupted run exits with 128 plus the number of its signal.
    """
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
            from convrepro.cli.completion import complete

            complete()
        from convrepro.cli.command import execute

        code = execute(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("convrepro: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
