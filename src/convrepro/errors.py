"""The errors that users see: what they gave, the rule it breaks, and what is valid."""

import unicodedata

#: Kinds of characters that are not shown as they are: control characters (ANSI escapes begin with one), marks of the
#: direction of text, halves of surrogate pairs (as in a file name that is not UTF-8), and unusual line breaks.
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""`text` with each hidden character as its escape, such as `\x1b`, but line breaks and tabs.

    Texts from tables, results and file names pass through here before they reach a terminal or a page.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in HIDDEN and c not in "\n\t" else c for c in text)


class ConvReproError(ValueError):
    """Bad input, described in one sentence; the command line prints it without a traceback and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


class SetAside(UserWarning):
    """A file that cannot be used and is left out of what is shown; the command line prints it as one line."""


class Interrupted(ConvReproError):
    """A run that was asked to stop and did, with everything saved; the same command continues it.

    requeue: whether it was asked by SIGUSR1, by a cluster that is going to start it again, or by SIGTERM, for good.
    """

    def __init__(self, message: str, *, requeue: bool) -> None:
        super().__init__(message)
        self.requeue = requeue


class Stopped(Interrupted):
    """A run that was ended early on purpose, by whoever watches its epochs; it is no failure of the run."""

    def __init__(self, message: str) -> None:
        super().__init__(message, requeue=False)


class Busy(ConvReproError):
    """The run's folder is held by another process that trains it; nothing was touched."""
