"""Submits the workers of a search as a job array: each task executes the command that one worker would type."""

from collections.abc import Callable, Sequence
from pathlib import Path

from convrepro.cluster import slurm
from convrepro.cluster.manifest import FOLDER, next_number
from convrepro.cluster.scripts import Shape, workers_script
from convrepro.cluster.site import Site
from convrepro.errors import ConvReproError
from convrepro.runs.storage import exclusive, write_whole

SCRIPT = "workers.sh"


def submit_workers(
    words: Sequence[str], count: int, shape: Shape, site: Site, name: str, study: Path, echo: Callable[[str], None]
) -> str:
    """Queues `count` workers that execute `convrepro` with these words; returns Slurm's id of the array.

    Scripts and logs are in a folder of `.slurm` below the folder of the study. Raises ConvReproError where Slurm is not
    there or rejects the script.
    """
    if count > (most := slurm.max_array_size()):
        raise ConvReproError(f"--submit {count} is more than the {most} tasks that an array may have on this cluster")
    place = study / FOLDER
    with exclusive(place / ".lock"):
        folder = place / str(next_number(place))
        script = folder / SCRIPT
        write_whole(script, workers_script(words, count, shape, site, name, folder, Path.cwd()).encode())
    job = slurm.submit(script)
    echo(f"queued {job}: {count} workers; their logs will be {folder}/worker_*.log")
    return job
