"""Stage 5: kernels that have not run on a GPU yet, each against the fastest form that libraries have for its product.

A case times the candidate at several tiles and the library's forms in turns, as CUDA graphs in bfloat16, and compares
the first tile's result with the library's. A kernel that wins nowhere is deleted; one that wins moves to `ops`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from candidate_pointwise import pointwise
from candidate_separable import packed, separable
from candidate_shift import pack, product, product_of_many
from measure import Step, graphed, in_turns
from records import Records, arguments, confined, described, print_failures, spoils, table
from torch import Tensor, nn
from torch.nn import functional as F

from convrepro.ops import ShiftConv2d, ShiftLinear, igc

LIMIT = 2e-2
"""The largest difference to the library's form in bfloat16, over its largest entry: both round, at other places."""

ROW_TILES = [(4, 128), (1, 256), (8, 64), (16, 64)]
"""For DeepShift's products: filters and words of a program. Compiling takes a second or two for each tile."""
PIXEL_TILES = [(64, 64, 32), (16, 64, 16), (16, 32, 32), (64, 32, 32)]
"""The same of many rows: rows, filters and words."""
TILES = [(64, 64, 32), (128, 64, 32), (128, 128, 32), (64, 128, 64)]
"""Of the other two: rows, columns and depth."""


def compare(library: Mapping[str, Step], candidate: Callable[..., Tensor], tiles: list, device: str) -> dict[str, Any]:
    """Milliseconds of each form and tile, ratios to the fastest form of the library, and the error of each tile."""
    forms = {str(tile): functools.partial(candidate, *tile) for tile in (tiles[:1] if device == "cpu" else tiles)}
    failed: dict[str, str] = {}
    steps: dict[str, Step] = {}
    wanted = next(iter(library.values()))()
    worst = 0.0
    for name, step in {**library, **forms}.items():
        try:
            got = step()
            worst = max(worst, ((got.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item())
            steps[name] = graphed(step) if device == "cuda" else step
        except Exception as error:
            if spoils(error):
                raise
            failed[name] = described(error)["error"]
    if not steps.keys() & forms.keys():
        return {"error": f"no tile runs: {next(iter(failed.values()))}", "failed": failed}
    times = in_turns(steps, device, rounds=5, budget_ms=5.0)
    fastest, best = (
        min((name for name in names if name in times), key=times.__getitem__) for names in (library, forms)
    )
    found: dict[str, Any] = {"ms": times, "ratio": {name: time / times[fastest] for name, time in times.items()}}
    found |= {"failed": failed, "worst": worst, "limit": LIMIT, "library": fastest, "best": best}
    return found if worst < LIMIT else found | {"error": f"off by {worst:.2g}, more than {LIMIT}"}


def dtype(device: str) -> torch.dtype:
    """bfloat16, which Triton's interpreter cannot multiply."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def drawn(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype(device))


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@torch.no_grad()
def shift_linear(channels: int, filters: int, rows: int, bits: int, device: str) -> dict[str, Any]:
    layer = ShiftLinear(channels, filters, variant="ps", bits=bits).to(device)
    words, weight = pack(layer), layer.quantized_weight().to(dtype(device))
    x, bias = drawn(rows, channels, device=device), drawn(filters, device=device)

    def candidate(*tile: int) -> Tensor:
        return product(x, words, bias, *tile)

    return compare({"library": lambda: F.linear(x, weight, bias)}, candidate, ROW_TILES, device)


@torch.no_grad()
def shift_conv(channels: int, filters: int, side: int, device: str) -> dict[str, Any]:
    layer = ShiftConv2d(channels, filters, 1, variant="ps").to(device)
    words, weight = pack(layer), last(layer.quantized_weight().to(dtype(device)))
    x, bias = last(drawn(1, channels, side, side, device=device)), drawn(filters, device=device)

    def candidate(*tile: int) -> Tensor:
        y = product_of_many(x.movedim(1, -1).flatten(0, 2), words, bias, *tile)
        return y.view(1, side, side, filters).movedim(-1, 1)

    return compare({"library": lambda: F.conv2d(x, weight, bias)}, candidate, PIXEL_TILES, device)


@torch.no_grad()
def shuffled(channels: int, filters: int, groups: int, side: int, batch: int, device: str) -> dict[str, Any]:
    x = last(drawn(batch, channels, side, side, device=device))
    weight = drawn(filters, channels // groups, 1, 1, device=device, scale=(groups / channels) ** 0.5)
    words = {"groups": groups, "before": groups, "after": groups}
    forms = {form: functools.partial(igc.MIX[form], x, weight, **words) for form in ("plain", "folded")}

    def candidate(*tile: int) -> Tensor:
        return pointwise(x, weight, groups, None, groups, groups, *tile)

    return compare(forms, candidate, TILES, device)


@torch.no_grad()
def mobile(channels: int, filters: int, side: int, batch: int, device: str) -> dict[str, Any]:
    x = last(drawn(batch, channels, side, side, device=device))
    first = nn.Conv2d(channels, channels, 3, padding=1, groups=channels).to(device, dtype(device))
    second = nn.Conv2d(channels, filters, 1).to(device, dtype(device))
    pair = nn.Sequential(first, nn.ReLU(), second, nn.ReLU()).to(memory_format=torch.channels_last)
    weights, biases = packed(first.weight, second.weight), (first.bias, second.bias)

    def candidate(*tile: int) -> Tensor:
        return separable(x, *weights, biases, 1, 1, True, *tile)

    return compare({"two convolutions": lambda: pair(x)}, candidate, TILES, device)


def all_cases(records: Records) -> None:
    """In order of value."""
    torch.backends.cudnn.benchmark = True
    device = records.words.device
    small = device == "cpu"

    def run(name: str, timing: Callable[..., dict[str, Any]], *given: int) -> None:
        records.run(f"{name} {' '.join(map(str, given))}", functools.partial(timing, *given, device))

    if small:
        run("shift", shift_linear, 50, 20, 1, 5)
        run("shift 1x1", shift_conv, 40, 24, 3)
        run("shuffled", shuffled, 24, 24, 3, 3, 2)
        run("separable", mobile, 20, 24, 4, 2)
        return
    for bits in (5, 4, 6):
        run("shift", shift_linear, 4096, 4096, 1, bits)
    run("shift 1x1", shift_conv, 512, 2048, 7)
    run("separable", mobile, 512, 512, 14, 64)
    run("shuffled", shuffled, 256, 256, 8, 16, 256)
    run("shift", shift_linear, 25088, 4096, 1, 5)
    run("separable", mobile, 128, 128, 56, 64)
    run("shuffled", shuffled, 64, 64, 4, 32, 256)
    run("shift", shift_linear, 4096, 4096, 8, 5)
    run("shift 1x1", shift_conv, 1024, 1024, 14)
    run("shuffled", shuffled, 240, 240, 3, 28, 64)
    run("separable", mobile, 512, 512, 14, 1)


def main() -> None:
    records = confined("candidates", arguments(__doc__), all_cases)
    rows = []
    for name, case in records.cases.items():
        if "best" in case:
            forms = case["library"], case["best"]
            times = (f"{1000 * case['ms'][form]:.1f}" for form in forms)
            rows.append((name, *forms, *times, f"{case['ratio'][case['best']]:.3f}", f"{case['worst']:.1e}"))
    table("Candidates: time / library", ("case", "library", "tile", "us", "us", "ratio", "error"), rows)
    print_failures(records)


if __name__ == "__main__":
    main()
