"""How long tests wait for something: as long as it takes, on however busy a machine."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
#: Seconds after which something has failed; no test that passes waits so long.
PATIENCE = 600


def wait(until: Callable[[], T], process: subprocess.Popen | None = None, *, pause: float = 0.02) -> T:
    """What `until` returns, once that is true; fails where it never is, or where the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not (value := until()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain"
        time.sleep(pause)
    return value
