"""Checkpoints: found on disk or fetched, checked, read without executing anything, and brought to a network's keys."""

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
"""What Lightning, DataParallel and `torch.compile` put before a network's own keys."""

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
    """Whether `weights` names something to fetch, not a file."""
    return "://" in str(weights)


def locate(weights: str | Path, sha256: str | None = None) -> Path:
    """The file that `weights` names: a path, or a URL (http, https, file) that is fetched once.

    What is fetched goes to the folder `checkpoints` of `torch.hub.get_dir()`, where torchvision and timm keep theirs,
    and where a machine without a network may be given it. `sha256` holds the file's digest or at least its first eight
    digits; without it a URL is held to those that its name ends in, as torch hub has it: resnet18-f37072fd.pth. The
    file is checked each time; of a download that fails nothing is left.

    Raises ConvReproError for a file that does not exist, a URL that has another scheme or nothing to check it by or
    cannot be fetched, and for another digest than that given.
    """
    if sha256 is not None and not (isinstance(sha256, str) and _DIGITS.fullmatch(sha256.lower())):
        raise ConvReproError(
            f"weights_sha256={sha256!r} must be the first 8 to 64 hexadecimal digits of the sha256, as text: "
            "in Hydra's quotes, weights_sha256='\"01234567\"', where they are all decimal"
        )
    expected = sha256 and sha256.lower()
    if is_url(weights):
        return _fetched(str(weights), expected)
    path = Path(weights)
    if not path.is_file():
        raise ConvReproError(f"weights {path} do not exist")
    if expected:
        _check(path, expected, "it is another file, or damaged")
    return path


def _fetched(url: str, expected: str | None) -> Path:
    """The file of `url` in torch hub's folder, fetched where it is not there."""
    scheme, name = url.partition("://")[0], Path(unquote(urlparse(url).path)).name
    if scheme not in SCHEMES:
        raise ConvReproError(f"weights {url} cannot be fetched by {scheme}; valid: {', '.join(SCHEMES)}, or a file")
    named = _NAMED.search(name)
    expected = expected or (named and named[1])
    if not expected:
        raise ConvReproError(
            f"weights {url} need weights_sha256, for the name does not end in the first digits of the file's sha256 "
            "(as resnet18-f37072fd.pth does)"
        )
    if not (named and expected.startswith(named[1][: len(expected)])):
        name = f"{Path(name).stem}-{expected[:8]}{Path(name).suffix}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        _check(path, expected, f"delete it to fetch {url} anew")
    else:
        _fetch(url, path, expected)
    return path


def _fetch(url: str, path: Path, expected: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), expected, progress=sys.stderr.isatty())
    except RuntimeError as error:  # of torch.hub, for another digest
        raise ConvReproError(
            f"weights {url} are not what they were or were cut short: {error}; try again, or give the sha256 of the "
            "file that you trust by weights_sha256"
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
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises ConvReproError where the file is missing or is no checkpoint.
    """
    if not Path(path).is_file():
        raise ConvReproError(f"weights {path} do not exist")
    try:
        if Path(path).suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is nothing that an unpickler does not raise on some bytes
        raise ConvReproError(
            f"weights {path} cannot be read: damaged, not a checkpoint, or holding more than tensors and plain values"
        ) from error
    return content if isinstance(content, Mapping) else {}


def state_of(content: Mapping[str, object], path: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: itself, or under "state_dict". Raises ConvReproError without one."""
    content = content.get("state_dict", content)
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise ConvReproError(f"weights {path} hold no state dict")
    return state


def unwrapped(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The network's own keys, without the names of what wrapped it."""
    own = {name for name, _ in network.named_children()}
    wrappers = [w for w in WRAPPERS if w.rstrip(".") not in own]
    while wrapper := next((w for w in wrappers if any(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
    return state


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded into the network, one phrase for a key.

    The number of batches that a batch norm has seen may be missing, as it is in checkpoints from before torch 0.4.1;
    `load_state_dict` adds it.
    """
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing = [f"it lacks {k}" for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    unknown = [f"{key} is unknown" for key in state if key not in own]
    shapes = {key: tuple(state[key].shape) for key in own if key in state}
    changed = [f"{key} is {shape}, not {own[key]}" for key, shape in shapes.items() if shape != own[key]]
    return missing + unknown + changed
