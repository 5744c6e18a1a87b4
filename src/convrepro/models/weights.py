"""Checkpoints: finding or downloading them, checking and reading them without executing code, matching their keys."""

import hashlib
import re
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from convrepro.errors import ConvReproError

SCHEMES = ("http", "https", "file")
WRAPPERS = ("network.", "module.", "_orig_mod.")
"""Prefixes that Lightning, DataParallel and `torch.compile` add to the keys of a network."""

_DIGITS = re.compile(r"[0-9a-f]{8,64}")
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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def read_checkpoint(path: str | Path) -> Mapping[str, object]:
    """Returns the content of a checkpoint, on the CPU, without executing code from the file.

    Raises ConvReproError if the file is missing or is not a checkpoint.
    """
    if not Path(path).is_file():
        raise ConvReproError(f"weights {path} do not exist")
    try:
        if Path(path).suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # An unpickler can raise anything for a broken file.
        raise ConvReproError(
            f"weights {path} cannot be read: damaged, not a checkpoint, or holding more than tensors and plain values"
        ) from error
    return content if isinstance(content, Mapping) else {}


def state_of(content: Mapping[str, object], path: str | Path) -> dict[str, Tensor]:
    """Returns the state dict in the content of a checkpoint: the content itself, or its entry "state_dict".

    Raises ConvReproError if there is none.
    """
    found = content.get("state_dict", content)
    state = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not state:
        raise ConvReproError(f"weights {path} hold no state dict; valid: a state dict, or one under 'state_dict'")
    return state


def unwrapped(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns `state` with the keys of the network, without the prefixes of wrappers such as DataParallel."""
    own = {name for name, _ in network.named_children()}
    wrappers = [w for w in WRAPPERS if w.rstrip(".") not in own]
    while wrapper := next((w for w in wrappers if any(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
    return state


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Returns the reasons why the network cannot load `state`, one phrase for each key; it is empty if it can.

    The number of batches that a batch norm has seen may be missing, as in checkpoints from before torch 0.4.1, because
    `load_state_dict` adds it.
    """
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing = [f"it lacks {k}" for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    unknown = [f"{key} is unknown" for key in state if key not in own]
    shapes = {key: tuple(state[key].shape) for key in own if key in state}
    changed = [f"{key} is {shape}, not {own[key]}" for key, shape in shapes.items() if shape != own[key]]
    return missing + unknown + changed
