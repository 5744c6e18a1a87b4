"""One process at a time, across the machines that share a disk."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError

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


#: What a file is named while it is being written.
PART = ".part"


def write_whole(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write `content` so that a reader or a crash never meets half a file; what cannot be written leaves nothing.

    What was at `path` goes to `keep`, where given. Raises ConvReproError with the path and the reason.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ConvReproError(f"{path} cannot be written ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Have the names of the files in `folder` on disk before going on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of `content` as indented JSON."""
    write_whole(path, (json.dumps(content, indent=1, sort_keys=False) + "\n").encode())
