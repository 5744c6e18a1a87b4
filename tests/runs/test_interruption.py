"""Requests by signal: noted once, and survived by the processes that load data until the run has ended."""

import subprocess
import sys

from support.patience import PATIENCE

PARENT = """
import multiprocessing, os, signal, time
from convrepro.runs import interruption

interruption.listen()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,), daemon=True)
child.start()
time.sleep(0.2)
for number in (signal.SIGUSR1, signal.SIGTERM):
    os.kill(child.pid, number)
time.sleep(0.2)
assert child.is_alive(), "what a job's processes are told together must not end those that load data"
assert interruption.requested() is None
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGTERM)
assert interruption.requested() == "requeue", "the first request counts"
"""


def test_children_outlive_a_request_and_not_their_parent():
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
