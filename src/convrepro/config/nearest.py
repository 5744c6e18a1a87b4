"""What somebody may have meant by a name that does not exist."""

import difflib
from collections.abc import Sequence

#: Names that a message lists at most.
MOST = 12


def nearest(name: str, valid: Sequence[str], all_by: str) -> str:
    """The names in `valid` that are nearest to `name`, as the end of a sentence; where there are few, all.

    `all_by` is the command that lists them all.
    """
    if len(valid) <= MOST:
        return f"valid: {', '.join(valid) or 'none'}"
    listed = f"`{all_by}` lists all {len(valid)}"
    near = ", ".join(difflib.get_close_matches(name[:100], valid, n=3, cutoff=0.4))
    return f"did you mean {near}? {listed}" if near else listed
