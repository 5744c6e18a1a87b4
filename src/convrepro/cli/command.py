"""One command: its words are parsed, its verb is executed, and what goes wrong becomes a sentence and an exit code."""

import argparse
import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any, NoReturn

from convrepro import __version__
from convrepro.cli import cluster, compare, dashboards, evidence, export, look, search, speed, training
from convrepro.cli.selection import add_outside
from convrepro.config import plugins
from convrepro.config.overrides import shown
from convrepro.errors import ConvReproError, Interrupted, SetAside, visible

DESCRIPTION = "Reproduces the tables of papers on efficient convolutions, on any timm model."
GROUPS = (look, training, compare, search, cluster, evidence, dashboards, speed, export)
#: What a disk or a path may have that a user can put right.
FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
FIXABLE |= {errno.EISDIR, errno.EIO}
#: Packages that only some commands need, and what installs them.
EXTRAS = {
    "wandb": "wandb",
    "matplotlib": "matplotlib",
    "wandb_workspaces": "'convrepro[dashboard]'",
    "optuna": "'convrepro[search]'",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "'convrepro[export]'"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence; it asks for no argument that may be left out."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        if settings.get("nargs") == "*":
            settings.setdefault("default", [])  # without a default argparse names it among those that are missing
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"convrepro: {' '.join(message.split())[:400]}; `{self.prog} --help` shows the usage\n")


def parser() -> argparse.ArgumentParser:
    """The parser with all verbs and their options. Hydra overrides (key=value) are positional arguments."""
    top = Parser(prog="convrepro", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in GROUPS:
        group.add(verbs)
    for verb in verbs.choices.values():
        add_outside(verb)
    return top


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parses a command; one without words asks for help.

    Overrides may be given before, between and after options, and flags of sbatch after `--`.

    Raises ConvReproError for control characters, and for words and values of options that are empty; white space around
    a word is dropped where the word is read.
    """
    for word in words:
        text = word.strip()
        if visible(text) != text or not {"\n", "\t"}.isdisjoint(text):
            raise ConvReproError(f"{shown(word)} has a control character; type it anew")
    command, words = parser(), _with_values(words or ["--help"])
    end = words.index("--") if "--" in words else len(words)
    _refuse_empty(words[:end])
    arguments, rest = command.parse_known_args(words[:end])
    if words[end:]:
        if not hasattr(arguments, "flags"):
            takers = "submit, resubmit and search"
            command.error(f"`convrepro {arguments.verb}` takes no arguments after --; only {takers} do")
        arguments.flags = words[end + 1 :]
    tables = hasattr(arguments, "table")
    fits = [word[:1] != "-" and ("=" in word or tables) for word in rest]
    if rest and not (hasattr(arguments, "overrides") and all(fits)):
        command.prog = f"{command.prog} {arguments.verb}"
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _refuse_empty(words: Sequence[str]) -> None:
    """Raises ConvReproError for a value with nothing in it, which most often is a variable that a shell does not have.

    Taken for one that was not given, it would select every row, or every seed.
    """
    for before, word in zip(["", *words], words, strict=False):
        option, value = before, word
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            if not equals:
                continue
        if not value.strip(" \t,"):
            whose = f"{option} has the value" if option.startswith("-") else "an argument is"
            raise ConvReproError(f"{whose} {shown(value)}, which is empty; leave it out, or say what is meant")


#: Options whose value may be left out, even before an override, and what is meant then.
OPTIONAL = {"--cfg": "job", "--info": "all"}


def _with_values(words: Sequence[str]) -> list[str]:
    """The words with the values that may be left out."""
    whole: list[str] = []
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        whole.append(word)
        if word in OPTIONAL and (not following or following.startswith("-") or "=" in following):
            whole.append(OPTIONAL[word])
    return whole


def execute(words: Sequence[str]) -> int:
    """Executes a command and returns its exit code; an interrupt is the caller's to answer.

    Output that nobody reads any more ends the command with 0, output that cannot be written with 2.
    """
    _open_streams()
    try:
        code = _executed(list(words))
        sys.stdout.flush()
    except BrokenPipeError:
        _silence()
        return 0
    except OSError as error:
        if error.errno not in FIXABLE:
            raise
        place = shown(str(error.filename)) if error.filename else "the output"
        print(f"convrepro: {place} cannot be used: {error.strerror}", file=sys.stderr)
        _silence()
        return 2
    return code


def _executed(words: list[str]) -> int:
    try:
        arguments = parse(words)
    except SystemExit as end:  # argparse's, after its help or its complaint
        return int(end.code or 0)
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        return 2
    warnings.formatwarning = _one_line
    try:
        _check_folder()
        plugins.use(arguments.plugin, arguments.config_dir)
        return arguments.execute(arguments)
    except Interrupted as error:
        print(f"convrepro: {error}", file=sys.stderr)
        return 128 + (signal.SIGUSR1 if error.requeue else signal.SIGTERM)
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as missing:
        package = (missing.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        print(f"convrepro: {arguments.verb} needs {package}; `pip install {EXTRAS[package]}`", file=sys.stderr)
        return 2


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConvReproError("the folder that this shell is in does not exist any more; cd to one that does") from None


def _open_streams() -> None:
    """Let streams that are closed swallow what they get, and those of a small character set escape what they lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Lead the output nowhere, so that Python does not fail on what is left of it when it ends."""
    with suppress(io.UnsupportedOperation):  # a stream in memory has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as the command line prints it: what was set aside without the place in the code that noticed it."""
    if issubclass(category, SetAside):
        return f"convrepro: {visible(str(message))}\n"
    return _long(message, category, filename, lineno, line)


_long = warnings.formatwarning
