"""The settings of one cluster: flags of sbatch, shell lines that precede Python, and the Python to start.

They are read from `slurm/site.yaml` (which git ignores), then from CONVREPRO_SLURM_* variables, then from the flags of
the command line. Where a flag is given more than once, the last one applies.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from convrepro.config.paths import ROOT
from convrepro.config.secrets import is_secret, refuse_secrets
from convrepro.errors import ConvReproError

FILE = ROOT / "slurm" / "site.yaml"
PREFIX = "CONVREPRO_SLURM_"
KEYS = ("sbatch", "setup", "python")

#: Flags that `submit` sets itself, with the reason or what to use instead.
OWN = {
    "nodes": "it is the rows' trainer.num_nodes",
    "ntasks": "it is the rows' trainer.num_nodes x trainer.devices",
    "ntasks-per-node": "it is the rows' trainer.devices",
    "dependency": "the arrays of a submission depend on each other",
    "output": "`status` reads the logs in the submission's folder",
    "error": "`status` reads the logs in the submission's folder",
    "open-mode": "a requeued task appends to its log",
    "requeue": "every task is requeued",
    "no-requeue": "every task is requeued",
    "chdir": "tasks start where `submit` did",
    "wrap": "the scripts are generated",
    "parsable": "`submit` reads what sbatch prints",
    "wait": "`submit` returns at once; `status` watches",
    "test-only": "use --dry-run",
    "clusters": "`status` reads the queue of one cluster only",
}
SHORT = {
    "A": "account", "a": "array", "b": "begin", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "J": "job-name", "L": "licenses", "M": "clusters",
    "m": "distribution", "N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "S": "core-spec",
    "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
GPUS = frozenset({"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-task"})

#: A former key of W&B: in a line of a shell it is no commit.
KEY = re.compile(r"(?<!\w)[0-9a-f]{40}(?!\w)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: A name and the first character of what is assigned to it.
ASSIGNED = re.compile(r"([\w-]+)\s*[=:]\s*(?=[\"']?([^\s\"',]))")


@dataclass(frozen=True)
class Site:
    """The settings of a cluster.

    Attributes:
        flags: flags of sbatch by their long name; the value of a flag without one is None.
        setup: shell lines that run before Python starts.
        python: the shell command that starts Python.
    """

    flags: Mapping[str, str | None]
    setup: tuple[str, ...] = ()
    python: str = shlex.quote(sys.executable)


def load_site(flags: Sequence[str], environment: Mapping[str, str] = os.environ) -> Site:
    """Loads the settings of this machine's cluster, with `flags` as given after `--`.

    The file is the one that CONVREPRO_SLURM_SITE names (no file where that is empty), else `slurm/site.yaml` where it
    exists. Raises ConvReproError for an unknown key, a flag that `submit` sets itself, and a value that looks like a
    secret.
    """
    named = environment.get(f"{PREFIX}SITE")
    path = FILE if named is None else Path(os.path.expanduser(named))
    content = _read(path) if (path.exists() if named is None else named) else {}
    merged = {name: _value(value) for name, value in content.get("sbatch", {}).items()}
    variables = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX)}
    for variable, value in variables.items():
        if value and variable not in {"SITE", "SETUP", "PYTHON"}:
            merged[variable.lower().replace("_", "-")] = _value(value)
    merged |= parse_flags(flags)
    lines = variables["SETUP"].splitlines() if "SETUP" in variables else content.get("setup", [])
    site = Site(
        {name: value for name, value in merged.items() if value != "false"},
        tuple(lines),
        variables.get("PYTHON") or content.get("python") or Site.python,
    )
    _check(site)
    return site


def parse_flags(words: Sequence[str]) -> dict[str, str | None]:
    """Parses `-p gpu --mem=8G --exclusive` as {"partition": "gpu", "mem": "8G", "exclusive": None}.

    Raises ConvReproError for a word that is not a flag.
    """
    flags: dict[str, str | None] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        long = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", word, re.DOTALL)
        short = re.fullmatch(r"-([A-Za-z])=?(.*)", word, re.DOTALL)
        if long:
            name, value = long[1], long[2]
        elif short and short[1] in SHORT:
            name, value = SHORT[short[1]], short[2] or None
        else:
            raise ConvReproError(f"{word!r} is not a flag of sbatch; write --name=value, such as --partition=NAME")
        if value is None and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        flags[name] = value
    return flags


def _read(path: Path) -> dict:
    """Reads the site file, with every scalar as text, so that YAML does not read 24:00:00 as a number."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConvReproError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConvReproError(f"{path} must be a mapping; its keys are {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise ConvReproError(f"{path}: unknown key {key!r}; valid: {', '.join(KEYS)}")
    content = {key: value for key, value in content.items() if value}
    wanted = ((dict, "a mapping of flags to values"), (list, "a list of lines"), (str, "a text"))
    for key, (kind, described) in zip(KEYS, wanted, strict=True):
        value = content.get(key, kind())
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
            raise ConvReproError(f"{path}: {key} must be {described}")
    return content


def _value(text: str) -> str | None:
    return None if text in ("", "true") else text


def _check(site: Site) -> None:
    for name, value in site.flags.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ConvReproError(
                f"{name!r} is not a flag of sbatch; give its long name without dashes, such as partition"
            )
        if name in OWN:
            raise ConvReproError(f"--{name} cannot be given: {OWN[name]}")
        if name == "array" and not re.fullmatch(r"%[1-9]\d*", value or ""):
            raise ConvReproError(f"--array={value} cannot be given; --array=%8 limits how many tasks run at once")
        if name == "signal" and not re.fullmatch(r"(SIGUSR1|USR1|10)@[1-9]\d*", value or ""):
            raise ConvReproError(f"--signal={value}: runs save on SIGUSR1; write --signal=SIGUSR1@SECONDS")
        if value is not None and CONTROL.search(value):
            raise ConvReproError(f"--{name}: the value must not have a line break or a control character")
    if CONTROL.search(site.python):
        raise ConvReproError("python: the value must not have a line break or a control character")
    for text in (*(f"--{k}={v}" for k, v in site.flags.items()), *site.setup, site.python):
        _refuse_secret(text)


def _refuse_secret(text: str) -> None:
    """Raises ConvReproError where `text` contains a secret, because job scripts and records stay on a shared disk.

    A value that the shell reads where the job runs, such as `$(cat FILE)`, is accepted.
    """
    named = [name for name, first in ASSIGNED.findall(text) if is_secret(name) and first not in "$`"]
    if named or KEY.search(text):
        raise ConvReproError(
            f"{named[0] if named else 'a key'} would be written to the job scripts; export it in the shell that "
            "submits, whose environment jobs inherit, or have it read where the job runs, for example from ~/.netrc"
        )
    refuse_secrets([text])
