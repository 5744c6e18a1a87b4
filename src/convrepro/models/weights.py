"""Checkpoints: finding or downloading them, checking them, and reading them without executing code."""

import hashlib
import re
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from safetensors.torch import load_file

from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError

SCHEMES = ("http", "https", "file")

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_BLOCKED = re.compile(r"GLOBAL ([\w.]+)")
_NAMED = re.compile(r"-([0-9a-f]{8,64})(\.\w+)+$")


def content_digest(weights: str, sha256: str | None = None) -> str:
    """A digest of the content of a checkpoint: the sha256 of a file; of a URL the digits that it is held to.

    Raises ConvReproError where a file does not exist, and for a URL without digits, as `locate` does.
    """
    if is_url(weights):
        named = _NAMED.search(Path(unquote(urlparse(weights).path)).name)
        digits = sha256 or (named and named[1])
        return digits.lower()[:8] if digits else _sha256(locate(weights, sha256))
    return _sha256(locate(weights, sha256))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def is_url(weights: str | Path) -> bool:
    """Returns whether `weights` is a URL rather than a file."""
    return "://" in str(weights)


def locate(weights: str | Path, sha256: str | None = None) -> Path:
    """Returns the file that `weights` names: a path, or a URL (http, https, file), which is downloaded once.

    Downloads go to the folder `checkpoints` of `torch.hub.get_dir()`, where torchvision and timm store theirs; on a
    machine without a network, put the file there. `sha256` is the digest of the file, or at least its first eight
    digits. Without it, the name of a URL must end in these digits, as in torch hub: resnet18-f37072fd.pth. The file is
    checked on every call. A failed download leaves no file.

    Raises ConvReproError for a file that does not exist, for a URL that has another scheme, has no digest or cannot be
    downloaded, and for a file whose digest is another one.
    """
    if sha256 is not None and not (isinstance(sha256, str) and _DIGITS.fullmatch(sha256.lower())):
        raise ConvReproError(
            f"weights_sha256={sha256!r} must be the first 8 to 64 hexadecimal digits of the sha256, as text; if all "
            "digits are decimal, quote them for Hydra: weights_sha256='\"01234567\"'"
        )
    expected = sha256 and sha256.lower()
    if is_url(weights):
        return _fetched(str(weights), expected)
    path = Path(weights)
    if not path.is_file():
        raise ConvReproError(f"weights {path} do not exist")
    if expected:
        _check(path, expected, "the file is another one or damaged; give the right file or its sha256")
    return path


def _fetched(url: str, expected: str | None) -> Path:
    """Returns the file of `url` in torch hub's folder, after downloading it if it is missing."""
    scheme, name = url.partition("://")[0], Path(unquote(urlparse(url).path)).name
    if scheme not in SCHEMES:
        raise ConvReproError(f"weights {url} cannot be fetched by {scheme}; valid: {', '.join(SCHEMES)}, or a file")
    named = _NAMED.search(name)
    expected = expected or (named and named[1])
    if not expected:
        raise ConvReproError(
            f"weights {url} need weights_sha256, because the name does not end in the first digits of the file's "
            "sha256 (as resnet18-f37072fd.pth does)"
        )
    if not (named and expected.startswith(named[1][: len(expected)])):
        name = f"{Path(name).stem}-{expected[:8]}{Path(name).suffix}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        _check(path, expected, f"delete it to fetch {url} again")
    else:
        _fetch(url, path, expected)
    return path


def _fetch(url: str, path: Path, expected: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), expected, progress=sys.stderr.isatty())
    except RuntimeError as error:  # torch.hub raises it for another digest.
        raise ConvReproError(
            f"weights {url} have changed or were cut short: {error}; try again, or give the sha256 of the file that "
            "you trust by weights_sha256"
        ) from error
    except (OSError, HTTPException) as error:
        raise ConvReproError(
            f"weights {url} cannot be fetched: {error}; give a file by weights, or put the file at {path}"
        ) from error


def _check(path: Path, expected: str, remedy: str) -> None:
    digest = _sha256(path)
    if not digest.startswith(expected):
        raise ConvReproError(f"weights {path} have the sha256 {digest}, not {expected}; {remedy}")


def read_checkpoint(path: str | Path) -> Mapping[Any, object]:
    """Returns the content of a checkpoint, on the CPU, without executing code from the file.

    A safetensors file is recognised by its name or by its first bytes. Raises ConvReproError if the file is missing, is
    damaged or not a checkpoint, is a TorchScript archive, holds objects of other types than tensors and plain values
    (the message names the types and the remedy), or holds no mapping.
    """
    if not Path(path).is_file():
        raise ConvReproError(f"weights {path} do not exist")
    try:
        if Path(path).suffix == ".safetensors" or _is_safetensors(Path(path)):
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # An unpickler can raise anything for a broken file.
        raise ConvReproError(f"weights {path} cannot be read: {_reason(path, error)}") from error
    if not isinstance(content, Mapping):
        raise ConvReproError(
            f"weights {path} hold a {type(content).__name__}, not a state dict or a mapping that contains one"
        )
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as safetensors does: the length of a header in 8 bytes, then the header in JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _reason(path: str | Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do where it is not damaged."""
    if "TorchScript" in str(error):
        return (
            "it is a TorchScript archive, not a state dict; if you trust it, save its weights alone: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    blocked = _blocked_types(path, error)
    if not blocked:
        return "damaged, or not a checkpoint"
    shown = ", ".join(text_of(name) for name in blocked[:3]) + (f" and {len(blocked) - 3} more" * (len(blocked) > 3))
    whole = any(name.startswith("torch.nn.modules.") for name in blocked)
    weights = "content.state_dict()" if whole else "content['state_dict']"
    return (
        f"it holds {'a whole network, with' if whole else 'more than tensors and plain values:'} objects of the types "
        f"{shown}, which loading would execute; if you trust the file, save its weights alone: content = "
        f"torch.load({str(path)!r}, weights_only=False); torch.save({weights}, 'weights.pth')"
        + ("" if whole else ", where 'state_dict' is the entry that holds the weights")
    )


def _blocked_types(path: str | Path, error: Exception) -> list[str]:
    """The types in a checkpoint that are not loaded, because creating an object of theirs may execute any code."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # It reads no other format than torch's newest, and nothing that is damaged.
        names = []
    return sorted(names) or _BLOCKED.findall(str(error))
