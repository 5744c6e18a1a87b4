"""The entry of the command line. It imports the rest where an interrupt is answered, even one in the first moment."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = "convrepro: interrupted; the same command continues from the last checkpoint"
EXIT_CODE = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> None:
    """Executes a command and exits: with 0, with 1 where a run failed, or with 2 and one sentence for bad input.

    An interrupted run exits with 128 plus the number of its signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
            from convrepro.cli.completion import complete

            complete()
        from convrepro.cli.command import execute

        code = execute(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        code = EXIT_CODE
    if argv is None:
        gc.freeze()  # at its end Python would look at every object of the libraries once more: seconds
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, but ends the process at once where the interrupt comes in the middle of an import.

    There libraries answer an exception in ways of their own: torch, for one, goes on without numpy.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(EXIT_CODE)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
