"""Requests to stop, by signal: SIGUSR1 asks to save and be queued again, SIGTERM to save and stop.

A handler only notes the request. Whoever trains asks `requested()` where the state is consistent, saves and ends.
"""

import atexit
import multiprocessing.util
import signal
from types import FrameType
from typing import Literal

Request = Literal["requeue", "stop"]

SIGNALS: dict[int, Request] = {signal.SIGUSR1: "requeue", signal.SIGTERM: "stop"}

_listening = False
_request: Request | None = None


def listen(also: int | None = None) -> None:
    """Note SIGUSR1 and SIGTERM from here on; call it first thing, in the main thread.

    Args:
        also: another signal that asks to save and be queued again.
    """
    global _listening
    if also is not None:
        SIGNALS[also] = "requeue"
    if not _listening:
        atexit.register(_end_children)  # before multiprocessing's own, which waits for them
    _listening = True
    for number in SIGNALS:
        signal.signal(number, _note)


def listen_again() -> None:
    """Put the handlers back where a library has installed its own; nothing where `listen` was not called."""
    if _listening:
        listen()


def requested() -> Request | None:
    """The first request that came, or None."""
    return _request


def _note(number: int, frame: FrameType | None) -> None:
    global _request
    _request = _request or SIGNALS[number]


def _end_children() -> None:
    """Processes that load data inherit the handlers, so that a signal to all of a job leaves them at work until the
    run has saved; then SIGTERM does not end them any more.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
