"""Networks for inference: each operator in its leanest form, norms folded into the convolutions before them; and
their files, for `torch.export` and ONNX.
"""

import copy
import importlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.layers import BatchNormAct2d, get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from convrepro.errors import ConvReproError
from convrepro.ops.base import fold_bias_, scaled

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
TOLERANCE = 1e-3
"""Largest difference, over the largest magnitude of the output, at which an exported network counts as equal. Where the
network in float32 is further from itself in float64, four times that.
"""

CHECKED_BATCHES = (1, 3)


@dataclass
class FuseReport:
    """What `fuse` did: the names of operators that got their form for inference, and of batch norms that were folded
    away; for each that was not, why.
    """

    deployed: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: the number of operators, of norms folded, and of norms kept for each reason."""
        text = f"{len(self.deployed)} operators deployed, {len(self.folded)} norms folded"
        reasons = ", ".join(f"{number} {reason}" for reason, number in Counter(self.kept.values()).items())
        return f"{text}; norms kept: {reasons}" if reasons else text


def fuse(network: nn.Module) -> tuple[nn.Module, FuseReport]:
    """A copy of `network` for inference, which gives what `network` gives in evaluation mode, and what was done.

    Operators become plain layers, their weights resolved (`deployed`). A batch norm (timm's with an activation, too) is
    folded into the convolution before it where nothing else uses that convolution's output or weight, as far as the
    weights may change: those of DeepShift stay powers of two and those of few bits stay their codes, so that the norms
    behind them remain. Convolutions are operators and layers of the very class `nn.Conv2d`. The pairs are found by
    tracing; in a network that cannot be traced, no norm is folded. `network` itself is not changed.
    """
    holder = nn.ModuleDict({"network": copy.deepcopy(network).eval().requires_grad_(False)})
    fused, report = holder["network"], FuseReport()
    made = _fold_norms(fused, report)
    for name, module in fused.named_modules():
        if hasattr(module, "deployed"):
            made[module] = module.deployed()
            report.deployed.append(name)
    for place, module in list(holder.named_modules(remove_duplicate=False)):
        if module in made:
            holder.set_submodule(place, made[module])
    return holder["network"].requires_grad_(False), report


class _Tracer(fx.Tracer):
    """Calls of convolutions, operators and what timm says not to trace are single steps."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        whole = hasattr(module, "deployed") or isinstance(module, tuple(get_notrace_modules()))
        return whole or super().is_leaf_module(module, module_qualified_name)


def _fold_norms(network: nn.Module, report: FuseReport) -> dict[nn.Module, nn.Module]:
    """Fold norms into the convolutions of `network`; returns what each folded norm has to give way to."""
    left: dict[nn.Module, nn.Module] = {}
    norms = {module: name for name, module in network.named_modules() if type(module) in NORMS}
    if not norms:
        return left
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(network)
    except Exception as error:  # there is nothing that a network does not raise when it is traced
        report.kept = dict.fromkeys(norms.values(), f"in a network that cannot be traced ({type(error).__name__})")
        return left
    called = {node: network.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"}
    calls = Counter(called.values())
    read = {node.target.rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    report.kept = dict.fromkeys(norms.values(), "not reached by the tracing")
    for node, norm in called.items():
        if norm not in norms:
            continue
        before, name = node.all_input_nodes[0], norms[norm]
        conv = called.get(before)
        if type(conv) is not nn.Conv2d and not hasattr(conv, "fold_"):
            report.kept[name] = "not behind a convolution"
        elif calls[conv] > 1 or calls[norm] > 1 or len(before.users) > 1 or before.target in read:
            report.kept[name] = "behind a convolution that is used elsewhere, too"
        elif reason := _fold(conv, norm):
            report.kept[name] = reason
        else:
            del report.kept[name]
            report.folded.append(name)
            left[norm] = _remainder(norm)
    return left


def _fold(conv: nn.Module, norm: nn.BatchNorm2d) -> str | None:
    """Fold `norm` into `conv`, or say why not."""
    if norm.running_var is None:
        return "without running statistics"
    if any(module._forward_pre_hooks or module._forward_hooks for module in (conv, norm)):
        return "behind hooks"
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.affine:
        shift = shift + norm.bias
    if type(conv) is not nn.Conv2d:
        return None if conv.fold_(scale, shift) else f"behind a {type(conv).__name__} that keeps its weights"
    conv.weight = scaled(conv.weight, scale)
    fold_bias_(conv, scale, shift, conv.weight.dtype)
    return None


def _remainder(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a folded norm."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


@dataclass(frozen=True)
class Exported:
    """A file with a network for inference.

    difference: the largest between its output and that of the network in evaluation mode, on random images in batches
    of 1 and 3, over the largest magnitude of the output.
    """

    path: Path
    fused: FuseReport
    difference: float


def check_target(path: Path) -> None:
    """Raise ConvReproError where `path` ends in nothing that `export` writes, its folder does not exist, or packages
    for it are missing.
    """
    if path.suffix not in _FORMATS:
        raise ConvReproError(f"{path} must end in {' or '.join(_FORMATS)}, which says what to write")
    if not path.parent.is_dir():
        raise ConvReproError(f"{path} cannot be written: {path.parent} is no folder")
    if path.suffix == ".onnx":
        try:
            for package in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(package)
        except ImportError as error:
            raise ConvReproError(f"{path} needs {error.name}: pip install 'convrepro[export]'") from error


def export(network: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write the fused `network` (see `fuse`) to `path`, for images like `example` (B, C, H, W) in batches of any size.

    A .pt2 is written by `torch.export.save`, a .onnx by `torch.onnx.export`. It is read again and run, by
    `torch.export.load` or onnxruntime, before it takes its place; on a difference from `network` nothing is written.

    `network` and `example` are on the CPU. Raises ConvReproError for another suffix, missing packages, a network that
    cannot be exported or written, and a difference that is too large (see `_differences`).
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
    except Exception as error:  # there is nothing that exporters do not raise
        reason = str(error).strip().partition("\n")[0]
        raise ConvReproError(f"the network cannot be exported to {path}: {type(error).__name__}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    if not difference <= allowed:
        raise ConvReproError(
            f"{path} is not written: its output differs from the network's by {difference:.1e} of the largest output, "
            f"above {allowed:.1e}"
        )
    return Exported(path, report, difference)


def load(path: Path, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """What computes the logits (B, num_classes) of images (B, C, H, W) by the network in a file that `export` wrote.

    threads: of onnxruntime, 0: its own choice; `torch.export.load` has those of torch.
    """
    return _FORMATS[path.suffix][1](path, threads)


def _write(fused: nn.Module, example: Tensor, path: Path) -> None:
    images = example.new_zeros(2, *example.shape[1:])  # a batch of 1 would be taken for a constant
    with _quiet():
        program = torch.export.export(fused, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
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
    # Threads that wait for work by spinning would take the cores from whoever runs in turns with this network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _load_program(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


_FORMATS = {".onnx": (_save_onnx, _load_onnx), ".pt2": (torch.export.save, _load_program)}


@torch.inference_mode()
def _differences(network: nn.Module, run: Callable[[Tensor], Tensor], example: Tensor) -> tuple[float, float]:
    """The largest difference of outputs over their largest magnitude, and that of the network from itself in float64.

    Where inputs of layers are rounded, a sum that lies on the edge between two numbers falls to either side, and no two
    programs agree. How far that leads shows in higher precision. Raises ValueError where two evaluations differ.
    """
    reference, generator = copy.deepcopy(network).eval(), torch.Generator().manual_seed(0)
    batches = [torch.randn(n, *example.shape[1:], generator=generator, dtype=example.dtype) for n in CHECKED_BATCHES]

    def outputs(apply: Callable[[Tensor], Tensor], dtype: torch.dtype = example.dtype) -> Tensor:
        return torch.cat([apply(images.to(dtype)) for images in batches])

    expected = outputs(reference)
    if not torch.equal(outputs(reference), expected):
        raise ValueError("two evaluations of it differ, so that nothing can be compared with it")

    def distance(other: Tensor) -> float:
        return float((other - expected).abs().max() / expected.abs().max())

    difference = distance(outputs(run))
    if difference <= TOLERANCE:
        return difference, 0.0
    return difference, distance(outputs(copy.deepcopy(reference).double(), torch.float64))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
