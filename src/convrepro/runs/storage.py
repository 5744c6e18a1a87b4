"""One process at a time, across the machines that share a disk."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What `flock` says on a file system that has no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process is inside a block with the same `path`, a file that is made for this; then go on.

    The lock is the kernel's and ends with the process. On a file system without locks nothing is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
