"""The errors that users see: what they gave, the rule it breaks, and what is valid."""


class ConvReproError(ValueError):
    """Bad input, told in one sentence; the command line prints it without a traceback and exits with 2."""


class Interrupted(ConvReproError):
    """A run that was asked to stop and did, with everything saved; the same command continues it.

    requeue: whether it was asked by SIGUSR1, by a cluster that is going to start it again, or by SIGTERM, for good.
    """

    def __init__(self, message: str, *, requeue: bool) -> None:
        super().__init__(message)
        self.requeue = requeue


class Busy(ConvReproError):
    """The run's folder is held by another process that trains it; nothing was touched."""
