"""Networks for inference: deployed operators, norms folded into convolutions, and export to `torch.export` and ONNX."""

import copy
import importlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from timm.layers import BatchNormAct2d
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from convrepro.errors import ConvReproError
from convrepro.ops.base import ConvOperator, fold_bias_, scaled

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
TOLERANCE = 1e-3
"""The largest difference, relative to the largest magnitude of the output, of an exported network that counts as equal.

If four times the difference between the network in float32 and in float64 is larger, this is the tolerance.
"""

CHECKED_BATCHES = (1, 3)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@runtime_checkable
class Deployable(Protocol):
    """A module that has a form for inference, as operators have."""

    def deployed(self) -> nn.Module: ...


@runtime_checkable
class Foldable(Protocol):
    """A module that can apply a scale and a shift to its output by its weights, as operators can."""

    def fold_(self, scale: Tensor, shift: Tensor) -> bool: ...


@dataclass
class FuseReport:
    """The result of `fuse`.

    Attributes:
        deployed: names of the operators that were replaced by their form for inference.
        folded: names of the batch norms that were folded.
        kept: the reason for each batch norm that was not folded, keyed by its name.
    """

    deployed: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Returns one line: the number of deployed operators, of folded norms, and of kept norms for each reason."""
        text = f"{len(self.deployed)} operators deployed, {len(self.folded)} norms folded"
        reasons = ", ".join(f"{number} {reason}" for reason, number in Counter(self.kept.values()).items())
        return f"{text}; norms kept: {reasons}" if reasons else text


def fuse(network: nn.Module) -> tuple[nn.Module, FuseReport]:
    """Returns a copy of `network` for inference, and a report. The copy computes what `network` computes in eval mode.

    Operators become plain layers (`deployed`). A batch norm, including timm's batch norm with an activation, is folded
    into the convolution before it if nothing else uses the output or the weight of that convolution. A convolution is
    an operator or a layer whose class is exactly `nn.Conv2d`. Norms after DeepShift and low-precision operators are
    kept, because the weights have to stay powers of two and codes of few bits. The pairs are found by tracing; in a
    network that cannot be traced, no norm is folded. `network` itself is not changed.
    """
    holder = nn.ModuleDict({"network": copy.deepcopy(network).eval().requires_grad_(False)})
    fused, report = holder["network"], FuseReport()
    made = _fold_norms(fused, report)
    for name, module in fused.named_modules():
        form = module.deployed() if isinstance(module, Deployable) else None
        if form is not None:
            made[module] = form
            report.deployed.append(name)
    for place, module in list(holder.named_modules(remove_duplicate=False)):
        if module in made:
            holder.set_submodule(place, made[module])
    return holder["network"].requires_grad_(False), report


class _Tracer(fx.Tracer):
    """A tracer that records operators, and modules that timm excludes from tracing, as single calls."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(module, (Deployable, *get_notrace_modules()))
        return whole or super().is_leaf_module(module, module_qualified_name)


def _fold_norms(network: nn.Module, report: FuseReport) -> dict[nn.Module, nn.Module]:
    """Folds norms into the convolutions of `network`; returns the module that replaces each folded norm."""
    replacements: dict[nn.Module, nn.Module] = {}
    norms = {
        module: name
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and type(module) in NORMS
    }
    if not norms:
        return replacements
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(network)
    except Exception as error:  # Tracing an arbitrary network can raise anything.
        report.kept = dict.fromkeys(norms.values(), f"in a network that cannot be traced ({type(error).__name__})")
        return replacements
    called = {node: network.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(called.values())
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    report.kept = dict.fromkeys(norms.values(), "not reached by the tracing")
    for node, norm in called.items():
        if not isinstance(norm, nn.BatchNorm2d) or norm not in norms:
            continue
        before, name = node.all_input_nodes[0], norms[norm]
        conv = called.get(before)
        if conv is None or (type(conv) is not nn.Conv2d and not isinstance(conv, Foldable)):
            report.kept[name] = "not after a convolution"
        elif calls[conv] > 1 or calls[norm] > 1 or len(before.users) > 1 or before.target in read:
            report.kept[name] = "after a convolution that is also used elsewhere"
        elif reason := _fold(conv, norm):
            report.kept[name] = reason
        else:
            del report.kept[name]
            report.folded.append(name)
            replacements[norm] = _remainder(norm)
    return replacements


def _fold(conv: nn.Module, norm: nn.BatchNorm2d) -> str | None:
    """Folds `norm` into `conv`; returns the reason if this is not possible, else None."""
    if norm.running_var is None or norm.running_mean is None:
        return "without running statistics"
    if any(module._forward_pre_hooks or module._forward_hooks for module in (conv, norm)):
        return "with hooks on it or on its convolution"
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.affine:
        shift = shift + norm.bias
    if isinstance(conv, Foldable):
        return None if conv.fold_(scale, shift) else f"after a {type(conv).__name__}, {_unscalable(conv)}"
    if isinstance(conv, nn.Conv2d):
        conv.weight = scaled(conv.weight, scale)
        fold_bias_(conv, scale, shift, conv.weight.dtype)
    return None


def _unscalable(conv: nn.Module) -> str:
    defined = getattr(type(conv), "_scale_", None) is not ConvOperator._scale_
    return "whose weights must not change" if defined else "which defines no _scale_, so that nothing is folded into it"


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """Returns the module that replaces a folded norm: its dropout and activation, if it has them."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


@dataclass(frozen=True)
class Exported:
    """A file with a network for inference.

    Attributes:
        path: the file.
        fused: the report of `fuse`.
        difference: the largest difference between its output and that of the network in evaluation mode, relative to
            the largest magnitude of the output, on random images in batches of 1 and 3.
    """

    path: Path
    fused: FuseReport
    difference: float


def check_target(path: Path) -> None:
    """Raises ConvReproError if `export` cannot write `path`.

    This is the case for another suffix, a folder that does not exist, and missing packages.
    """
    if path.suffix not in _FORMATS:
        raise ConvReproError(f"{path} must end in {' or '.join(_FORMATS)}, which selects the format")
    if not path.parent.is_dir():
        raise ConvReproError(f"{path} cannot be written: {path.parent} is not a folder; create it first")
    if path.is_dir():
        raise ConvReproError(f"{path} cannot be written: it is a folder; give a file")
    if path.suffix == ".onnx":
        try:
            for package in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(package)
        except ImportError as error:
            raise ConvReproError(f"{path.name} needs {error.name}: pip install 'convrepro[export]'") from error


def _first(error: BaseException) -> BaseException:
    """The exception with which a chain of them began."""
    return _first(error.__cause__) if error.__cause__ else error


def _remedy(fused: nn.Module, path: Path) -> str:
    """What helps where torch 2.6 was not able to write a batch norm that stays; empty elsewhere."""
    norms = any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    if path.suffix == ".pt2" or not norms or not torch.__version__.startswith("2.6."):
        return ""
    return "; torch 2.6 cannot write a batch norm that is not folded to ONNX: take a newer torch, or a .pt2"


def export(network: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Writes the fused `network` (see `fuse`) to `path`, for images like `example` (B, C, H, W) in batches of any size.

    `torch.export.save` writes a .pt2 and `torch.onnx.export` a .onnx. The file is loaded and run, by
    `torch.export.load` or onnxruntime, before it gets its final name. If its output differs from that of `network`,
    no file is written.

    `network` and `example` must be on the CPU. Raises ConvReproError for another suffix, for missing packages, for a
    network that cannot be exported or written, and for a difference that is too large (see `_differences`).
    """
    path = Path(path)
    check_target(path)
    fused, report = fuse(network)
    partial = path.with_name(f"partial-{path.name}")
    try:
        _write(fused, example, partial)
        difference, own = _differences(network, load(partial), example)
        allowed = max(TOLERANCE, 4 * own)
        if difference <= allowed:
            partial.replace(path)
    except OSError as error:
        raise ConvReproError(f"{path} cannot be written: {error}") from error
    except Exception as error:  # The exporters can raise anything.
        cause = _first(error) if type(error).__name__ == "ConversionError" else error  # which explains at length
        reason = f"{type(cause).__name__}: {_COLOUR.sub('', str(cause)).strip().partition(chr(10))[0]}"
        raise ConvReproError(f"the network cannot be exported to {path}: {reason}{_remedy(fused, path)}") from error
    finally:
        partial.unlink(missing_ok=True)
    if not difference <= allowed:
        raise ConvReproError(
            f"{path} is not written: its output differs from the network's by {difference:.1e} of the largest output, "
            f"above {allowed:.1e}"
        )
    return Exported(path, report, difference)


def load(path: Path, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """Loads a file that `export` wrote; returns a function from images (B, C, H, W) to logits (B, num_classes).

    `threads` is the number of threads of onnxruntime, where 0 leaves the choice to onnxruntime. A .pt2 uses the threads
    of torch.
    """
    return _FORMATS[path.suffix][1](path, threads)


def _write(fused: nn.Module, example: Tensor, path: Path) -> None:
    images = example.new_zeros(2, *example.shape[1:])  # A batch size of 1 would become a constant.
    with _quiet():
        program = torch.export.export(fused, (images,), dynamic_shapes=({0: torch.export.Dim("batch", max=2**20)},))
        _FORMATS[path.suffix][0](program, path)


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )


def _load_onnx(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait would take the cores from a network that runs in turn with this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _load_program(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


_FORMATS = {".onnx": (_save_onnx, _load_onnx), ".pt2": (_save_program, _load_program)}


@torch.inference_mode()
def _differences(network: nn.Module, run: Callable[[Tensor], Tensor], example: Tensor) -> tuple[float, float]:
    """Returns two relative differences: between `run` and `network`, and between `network` in float32 and float64.

    Both are relative to the largest magnitude of the output. If layers round their inputs, a sum close to the boundary
    between two numbers can be rounded to either of them, and no two programs agree. The second difference shows how
    large this effect is; it is 0 if the first one is within the tolerance. Raises ValueError if two evaluations of
    `network` differ.
    """
    reference, generator = copy.deepcopy(network).eval(), torch.Generator().manual_seed(0)
    batches = [torch.randn(n, *example.shape[1:], generator=generator, dtype=example.dtype) for n in CHECKED_BATCHES]

    def outputs(apply: Callable[[Tensor], Tensor], dtype: torch.dtype = example.dtype) -> Tensor:
        return torch.cat([apply(images.to(dtype)) for images in batches])

    expected = outputs(reference)
    if not torch.equal(outputs(reference), expected):
        raise ValueError("two evaluations of the network differ, so that its export cannot be checked")

    def distance(other: Tensor) -> float:
        return float((other - expected).abs().max() / expected.abs().max())

    difference = distance(outputs(run))
    if difference <= TOLERANCE:
        return difference, 0.0
    return difference, distance(outputs(copy.deepcopy(reference).double(), torch.float64))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings and log messages of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
