"""Python for the tasks of a Slurm of tests, without the seconds that libraries load for.

`remote_python.py SOCKET words` asks the server of `command.py` for a process with these words, and is to Slurm what
that process is: it hands signals on, dies with it, and takes it along.
"""

import json
import os
import signal
import socket
import sys

#: What Slurm sends. SIGKILL needs no hand: the server sees the line break.
FORWARDED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)


def main(address: str, *words: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    ignored = [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), "session": False, "ignored": ignored}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(address)
        socket.send_fds(line, [json.dumps(request).encode()], [0, 1, 2])
        pid = int(line.recv(16))
        for number in FORWARDED:
            signal.signal(number, lambda sent, _: _send(pid, sent))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        status = int(line.recv(16) or signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
