"""The one error that users see: what they gave, the rule it breaks, and what is valid."""


class ConvReproError(ValueError):
    """Bad input, told in one sentence; the command line prints it without a traceback and exits with 2."""
