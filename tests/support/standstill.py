"""Processes that stand still, so that a run is not over before it is disturbed."""

import os
import re
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def send(pids: Collection[int], number: signal.Signals) -> bool:
    """Send a signal to each; False where there are none, or one is gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return bool(pids)


@contextmanager
def standing_still(pids: Collection[int]) -> Iterator[None]:
    """The processes stand still within the block."""
    assert send(pids, signal.SIGSTOP), "the run is over"
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


def all_asked(pids: Collection[int]) -> bool:
    """Whether each of these processes, which stand still, has got a signal since."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return all(re.search(r"^ShdPnd:\t0*[1-9a-f]", text, re.MULTILINE) for text in texts)
