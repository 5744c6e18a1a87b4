"""Work for all CPU cores: processes with one torch thread each."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import torch

#: So many tasks are worth the seconds that other processes need to start, and so many processes at most.
MANY, MOST = 16, 16

KILLED = (
    "one of several processes was killed, most likely for lack of memory; free some and type the command again, which "
    "goes on with what is not done yet"
)


def are_worth_it(tasks: int) -> bool:
    """Whether so many tasks end sooner in several processes; never in a process that another one of them started."""
    alone = multiprocessing.parent_process() is None  # not a worker that runs its parent's script anew
    return tasks >= MANY and alone and _workers() > 1


def pool(preload: str) -> ProcessPoolExecutor:
    """A pool with a process for each core, which have the module `preload` imported when they start."""
    context = multiprocessing.get_context("forkserver")  # torch may have threads, with which a fork can hang
    context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(_workers(), context, initializer=_quiet)


def _workers() -> int:
    """One for each CPU core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def _quiet() -> None:
    """A worker computes on one core, and leaves it to its parent to end after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
