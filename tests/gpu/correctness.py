"""Stage 1: every operator's case on the device against float64 on the CPU; HetConv's kernels at real sizes."""

import copy
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import graphed
from records import Records, arguments, confined, print_failures, table
from torch import Tensor, nn

for folder in (Path(__file__).parents[1], Path(__file__).parents[1] / "support"):
    sys.path.append(str(folder))

from operator_cases import CASES, OperatorCase  # noqa: E402

from convrepro.ops import HetConv2d, hetconv_launch  # noqa: E402

SHAPES = ({"padding": 1}, {"padding": 2, "dilation": 2, "stride": (2, 1), "kernel_size": (3, 5), "bias": False})
LIMITS = {"float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2}
"""Largest relative error, by the norm, of outputs and gradients."""


def relative(a: Tensor, b: Tensor) -> float:
    """The norm of the difference over that of b; infinite where there is a NaN."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    error = ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def gradients(operator: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of the input and of every parameter that has one."""
    x = x.detach().requires_grad_()
    operator.zero_grad()
    y = operator(x)
    y.backward(upstream.to(y))
    return {"y": y, "x": x.grad} | {n: p.grad for n, p in operator.named_parameters() if p.grad is not None}


def errors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(got[name], wanted[name]) for name in wanted}


def verdict(found: dict[str, float], limit: float) -> dict[str, Any]:
    """A record; an error where one of the errors `found` is above the limit."""
    record: dict[str, Any] = {"worst": max(found.values()), "errors": found, "limit": limit}
    bad = {name: value for name, value in found.items() if not value <= limit}
    return record | {"error": f"{bad} above {limit}"} if bad else record


def example(case: OperatorCase, words: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return case.build(**words), torch.randn(4, case.in_channels, 9, 12)


def in_float32(case: OperatorCase, words: dict[str, Any], device: str) -> dict[str, Any]:
    operator, x = example(case, words)
    exact = copy.deepcopy(operator).double()
    upstream = torch.randn_like(exact(x.double()))
    wanted = gradients(exact, x.double(), upstream)
    return verdict(errors(gradients(operator.to(device), x.to(device), upstream), wanted), LIMITS["float32"])


def under_autocast(case: OperatorCase, device: str) -> dict[str, Any]:
    """In bfloat16 and channels_last: near float32, in the memory format of the input, gradients in float32."""
    operator, x = example(case, SHAPES[0])
    expected = operator(x)
    operator, x = (
        operator.to(device, memory_format=torch.channels_last),
        x.to(device, memory_format=torch.channels_last),
    )
    with torch.autocast(device, torch.bfloat16):
        y = operator(x)
    assert y.dtype == torch.bfloat16, y.dtype
    assert y.is_contiguous(memory_format=torch.channels_last), y.stride()
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in operator.parameters() if p.requires_grad)
    return verdict({"y": relative(y, expected)}, 2 * case.autocast_tolerance)


def compiled(case: OperatorCase, device: str, backend: str) -> dict[str, Any]:
    """By torch.compile without graph breaks: as without it."""
    operator, x = example(case, SHAPES[0])
    operator, x = operator.to(device), x.to(device)
    upstream = torch.randn_like(operator(x))
    wanted = gradients(operator, x, upstream)
    wanted = {name: tensor.clone() for name, tensor in wanted.items()}
    torch._dynamo.reset()
    got = gradients(torch.compile(operator, backend=backend, fullgraph=True), x, upstream)
    return verdict({n: relative(got.get(n, got.get(f"_orig_mod.{n}")), wanted[n]) for n in wanted}, 1e-4)


def in_a_graph(case: OperatorCase, device: str) -> dict[str, Any]:
    """As a CUDA graph, forward and backward, in bfloat16: as without it, on new inputs."""
    if device != "cuda":
        return {"skipped": "CUDA graphs need a GPU"}
    operator, x = example(case, SHAPES[0])
    operator, x = operator.to(device), x.to(device).requires_grad_()
    results: list[Tensor] = []

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            y = operator(x)
        results[:] = [y, *torch.autograd.grad(y.float().square().sum(), [x])]

    replay = graphed(step)
    held = list(results)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    replay()
    got = [tensor.clone() for tensor in held]
    step()
    return verdict({name: relative(a, b) for name, a, b in zip(("y", "x"), got, results, strict=True)}, 1e-3)


SIZES = [(64, 64, 32), (64, 128, 16), (128, 256, 8), (512, 512, 4), (512, 512, 2), (96, 144, 7), (48, 48, 5)]
"""Channels, filters, height and width: those of VGG-16 on CIFAR-10, and odd ones."""
TILED = [((64, 64, 32), 4), ((512, 512, 4), 4), ((256, 256, 8), 16)]
"""Sizes and parts that are checked with each tile."""
VARIANTS = [
    {"arrangement": "shifted"},
    {"stride": 2},
    {"dilation": 2, "padding": 2, "bias": False},
    {"kernel_size": 5, "padding": 2},
]


def kernel(
    size: tuple[int, int, int], p: int, words: dict[str, Any], precision: str, device: str, tile: int = 0
) -> dict[str, Any]:
    """HetConv's Triton form against the plain form in float64, with the tile of that number."""
    channels, filters, side = size
    torch.manual_seed(0)
    words = {"kernel_size": 3, "padding": 1, **words}
    plain = HetConv2d(channels, filters, **words, p=p, form="plain", dtype=torch.float64)
    triton = HetConv2d(channels, filters, **words, p=p, form="triton")
    triton.load_state_dict(plain.state_dict())
    plain.load_state_dict({name: value.double() for name, value in triton.state_dict().items()})
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    x = torch.randn(4, channels, side, side).to(dtype)
    upstream = torch.randn_like(plain(x.double())).to(dtype)
    wanted = gradients(plain, x.double(), upstream.double())
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    kept = hetconv_launch.fastest
    hetconv_launch.fastest = lambda run, tiles, kind: run(tiles[min(tile, len(tiles) - 1)])
    try:
        x = x.to(device, memory_format=torch.channels_last)
        got = gradients(triton.to(device), x, upstream.to(device))
    finally:
        torch.backends.cudnn.allow_tf32 = False
        hetconv_launch.fastest = kept
    return verdict(errors(got, wanted), LIMITS[precision])


def all_cases(records: Records) -> None:
    """In order of value."""
    device = records.words.device
    torch.backends.cudnn.allow_tf32 = False
    small = device == "cpu"

    def run(name: str, check: Callable[..., dict[str, Any]], *given: Any) -> None:
        records.run(name, functools.partial(check, *given))

    usual, others = ("float32", ()) if small else ("bfloat16", ("float32", "tf32", "float16"))
    for size, p in itertools.product([(16, 16, 4), (12, 20, 3)] if small else SIZES, (2,) if small else (2, 4, 16)):
        if size[0] % p == size[1] % p == 0:
            run(f"triton {size} p={p} {usual}", kernel, size, p, {}, usual, device)
    for (size, p), tile in itertools.product(() if small else TILED, range(1, 13)):
        run(f"triton {size} p={p} {usual} tile {tile}", kernel, size, p, {}, usual, device, tile)
    for case in CASES:
        for i, shape in enumerate(SHAPES):
            run(f"float32 {case.name} {i}", in_float32, case, shape, device)
        run(f"bfloat16 {case.name}", under_autocast, case, device)
        run(f"graph {case.name}", in_a_graph, case, device)
    for precision, size in itertools.product(others, ((64, 128, 16), (96, 144, 7))):
        run(f"triton {size} p=4 {precision}", kernel, size, 4, {}, precision, device)
    for variant in VARIANTS:
        size = (8, 8, 4) if small else (128, 128, 9)
        run(f"triton {size} p=4 {variant} {usual}", kernel, size, 4, variant, usual, device)
    for case in CASES:
        run(f"compiled {case.name}", compiled, case, device, "aot_eager")
    if not small:
        for case in {case.operator: case for case in CASES}.values():
            run(f"inductor {case.name}", compiled, case, device, "inductor")


def main() -> None:
    words = arguments(__doc__)
    records = confined("correctness", words, all_cases)
    kinds: dict[str, list[str]] = {}
    for name, record in records.cases.items():
        state = "skipped" if "skipped" in record else "failed" if "error" in record else "passed"
        kinds.setdefault(name.split()[0], []).append("not reached" if record.get("error") == "not reached" else state)
    states = ("passed", "failed", "skipped", "not reached")
    table("Correctness", ("kind", *states), [(kind, *map(found.count, states)) for kind, found in kinds.items()])
    print_failures(records)


if __name__ == "__main__":
    main()
