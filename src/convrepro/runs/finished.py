"""Whether the work of a protocol is done in a folder: the one answer for all who train, skip, queue or collect."""

from pathlib import Path

from convrepro.config.compose import compose_config
from convrepro.config.scientific import scientific
from convrepro.config.strict import NotJson
from convrepro.errors import ConvReproError
from convrepro.runs.folder import state
from convrepro.runs.plan import Job
from convrepro.runs.protocol import Protocol
from convrepro.runs.result import Result, read_result


def is_done(job: Job) -> bool:
    """Whether the run of a plan has finished, its images and starting weights not looked at.

    A result that cannot be read does not count. Raises ConvReproError where the result is of another protocol.
    """
    if state(job.folder).result is None:
        return False
    return finished(job.folder, Protocol(scientific(compose_config(job.overrides)))) is not None


def finished(folder: Path, protocol: Protocol) -> Result | None:
    """The result of `protocol` in `folder`, or None where nothing has finished there.

    Raises ConvReproError where the folder holds the result of another protocol, and as `read_result` does.
    """
    try:
        result = read_result(folder)
    except NotJson:
        raise
    except ConvReproError as error:
        raise ConvReproError(f"{error}; move the file away, or mend it") from error
    if result is None:
        return None
    if other := protocol.difference(result["config"], result.get("protocol")):
        raise ConvReproError(
            f"{folder} holds a finished run of another protocol: {other}; move it away or choose another runs="
        )
    return result
