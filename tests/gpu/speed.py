"""Stage 2: times of operators over those of the dense convolution in the same process, in bfloat16 and channels_last.

The single layers of VGG-16 on CIFAR-10, its training step and its fused form, all as CUDA graphs; the dense
convolutions with cuDNN's own choice by timing. In order of value.
"""

import contextlib
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import Step, graphed, in_turns
from networks import inference_step, layer, layer_steps, network, training_step
from records import Records, arguments, confined, described, print_failures, spoils, table
from torch import Tensor, nn

from convrepro.ops import OPERATORS, hetconv_launch, hetconv_tiles
from convrepro.ops.hetconv_launch import Layer
from convrepro.ops.hetconv_tiles import Tile

LAYERS = [(512, 512, 4), (256, 256, 8), (128, 128, 16), (64, 64, 32), (256, 512, 4), (128, 256, 8), (64, 128, 16)]
LAYERS += [(512, 512, 2)]
"""Channels, filters, height and width."""
FIRST = LAYERS[:4]
"""Those that are timed before the networks."""
LARGE = [(64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 512, 28)]
LARGE += [(512, 512, 28), (512, 512, 14)]
"""The same of VGG-16 at 224 pixels."""
PARTS = (4, 16)
LEAST = (32, 64)
"""Channels of a merged block to try (`hetconv_launch.LEAST_BLOCK`)."""


def mac_ratio(p: int) -> float:
    return 1 / p + (1 - 1 / p) / 9


def compare(makers: dict[str, Callable[[], Step]], device: str) -> dict[str, Any]:
    """Milliseconds and ratios to the step "dense"; what cannot be made is named with the reason."""
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            steps[name] = graphed(make()) if device == "cuda" else make()
        except Exception as error:
            if spoils(error):
                raise
            failed[name] = described(error)["error"]
            print(f"  {name}: {failed[name][:200]}")
    times = in_turns(steps, device)
    return {"ms": times, "ratio": {name: time / times["dense"] for name, time in times.items()}, "failed": failed}


def leasts(channels: int, filters: int, p: int) -> list[int]:
    """Those of `LEAST` that merge blocks differently, but not all of them into one."""
    words = (3, 3), (1, 1), (1, 1), (1, 1)
    found = {Layer(channels, filters, p, *words).merged_blocks(least): least for least in reversed(LEAST)}
    return [least for blocks, least in found.items() if blocks > 1]


def time_layer(size: tuple[int, int, int], p: int, batch: int, device: str) -> dict[str, Any]:
    """Forward, and forward and backward, of the dense, the plain and the Triton form at each of `LEAST`."""
    channels, filters, side = size
    x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    words = channels, filters, device
    built = {"dense": layer(*words), "plain": layer(*words, p)}
    record: dict[str, Any] = {"mac_ratio": mac_ratio(p), "kernels": {}}
    found: dict[str, dict[str, Step]] = {"forward": {}, "training": {}}

    def add(name: str, module: nn.Module) -> None:
        for mode, step in layer_steps(module, x).items():
            found[mode][name] = graphed(step) if device == "cuda" else step

    add("dense", built["dense"])
    if device == "cpu" or (size in FIRST and p == PARTS[0]):  # cuDNN takes seconds to choose for grouped convolutions
        add("plain", built["plain"])
    usual = hetconv_launch.LEAST_BLOCK
    for least in leasts(channels, filters, p) if device == "cuda" else ():
        hetconv_launch.LEAST_BLOCK = least
        try:
            before = set(hetconv_tiles.timed)
            module = layer(*words, p, "triton")
            module.load_state_dict(built["plain"].state_dict())
            add(f"triton-{least}", module)
            if "plain" in found["forward"]:
                record[f"difference {least}"] = difference(module, built["plain"], x)
        finally:
            hetconv_launch.LEAST_BLOCK = usual
        for kind in set(hetconv_tiles.timed) - before:
            times = hetconv_tiles.timed[kind]
            record["kernels"][f"{least} {kind}"] = {str(tuple(tile)): time for tile, time in times.items()}
    for mode, steps in found.items():
        times = in_turns(steps, device, rounds=5, budget_ms=10.0)
        record[mode] = {"ms": times, "ratio": {name: time / times["dense"] for name, time in times.items()}}
    return record


def difference(module: nn.Module, plain: nn.Module, x: Tensor) -> list[float]:
    """Of output and gradients of two layers of the same weights, over the norms of the second's."""
    upstream = torch.randn_like(plain(x.float())).to(x.dtype)

    def tensors(layer: nn.Module) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16):
            y = layer(leaf)
        return [y, *torch.autograd.grad(y, [leaf, *layer.parameters()], upstream)]

    pairs = zip(tensors(module), tensors(plain), strict=True)
    return [((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs]


def variants(*forms: str) -> dict[str, tuple[str, dict[str, object]]]:
    """HetConv's networks by name: operator and knobs."""
    found = {f"{form} p={p}": ("hetconv", {"p": p, "form": form}) for p in PARTS for form in forms}
    return {"dense": ("standard", {}), **found}


def time_training(form: str, batch: int, side: int, compiled: bool, device: str) -> dict[str, Any]:
    def make(operator: str, knobs: dict[str, object]) -> Step:
        net = network(operator, device, **knobs)
        return training_step(torch.compile(net) if compiled else net, batch, device, side)

    given = variants(form)
    if side > 32:
        given = {name: words for name, words in given.items() if name != f"{form} p={PARTS[1]}"}
    return compare({name: functools.partial(make, *words) for name, words in given.items()}, device)


def time_inference(form: str, batch: int, device: str) -> dict[str, Any]:
    def make(operator: str, knobs: dict[str, object], relu: bool) -> Step:
        return inference_step(network(operator, device, **knobs), batch, device, relu)

    makers = {name: functools.partial(make, *words, True) for name, words in variants(form).items()}
    makers["dense, ReLU apart"] = functools.partial(make, "standard", {}, False)
    return compare(makers, device)


def time_operator(operator: str, batch: int, device: str) -> dict[str, Any]:
    """The training step with another operator at its usual knobs."""

    def make(operator: str) -> Step:
        return training_step(network(operator, device), batch, device)

    names = {"dense": "standard", operator: operator}
    return compare({name: functools.partial(make, word) for name, word in names.items()}, device)


def profile(name: str, batch: int, device: str) -> dict[str, Any]:
    """Microseconds on the GPU of the kernels of one training step, the longest first."""
    operator, knobs = variants("triton")[name]
    step = training_step(network(operator, device, **knobs), batch, device)
    for _ in range(4):
        step()
    with torch.profiler.profile() as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    events = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    longest = sorted(events, key=lambda e: -e.self_device_time_total)
    kernels = [(e.key[:90], round(e.self_device_time_total / 3, 1), e.count // 3) for e in longest]
    total = sum(time for _, time, _ in kernels)
    table(f"Kernels of {name}: {total:.0f} us", ("us", "calls", "kernel"), [(t, n, k) for k, t, n in kernels[:16]])
    return {"total_us": total, "kernels": kernels[:40]}


def warm(large: bool, seconds: float) -> dict[str, Any]:
    """Compile the kernels of all layers in several processes, which share Triton's cache."""
    processes = max(1, min(15, (os.cpu_count() or 1) - 1))
    command = [sys.executable, __file__, "--warm", "large" if large else "small"]
    parts = [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]
    try:
        return {"status": [part.wait(timeout=seconds) for part in parts]}
    finally:
        for part in parts:
            part.kill()


def run_third(third: int, run: Callable[[Tile], None], tiles: list[Tile], kind: object) -> None:
    """Each third tile, but for those that are too large or a library's."""
    from triton.runtime.errors import OutOfResources

    for tile in tiles[third::3]:
        if tile.library != "dense":
            with contextlib.suppress(OutOfResources):
                run(tile)


def warm_part(large: bool, i: int, of: int) -> None:
    """Part i of the work: the tiles of each kind of launch, run once."""
    words = (3, 3), (1, 1), (1, 1), (1, 1)
    work: dict[object, tuple[int, ...]] = {}
    for (channels, filters, side), p in itertools.product(LARGE if large else LAYERS, PARTS[:1] if large else PARTS):
        for least in (LEAST[0],) if large else leasts(channels, filters, p):
            kind = Layer(channels, filters, p, *words)
            blocks, block = kind.merged_blocks(least), kind.block(least)
            tiles = hetconv_tiles.gemm_tiles(blocks, *block, 2), hetconv_tiles.gradient_tiles(kind.block, True, 2)
            work.setdefault((str(tiles), block, side), (channels, filters, side, p, least))
    for (channels, filters, side, p, least), third in list(itertools.product(work.values(), range(3)))[i::of]:
        hetconv_launch.fastest = functools.partial(run_third, third)
        hetconv_launch.LEAST_BLOCK = least
        batch = 16 if large else 256
        x = torch.randn(batch, side, side, channels, device="cuda", dtype=torch.bfloat16).movedim(-1, 1)
        layer_steps(layer(channels, filters, "cuda", p, "triton"), x)["training"]()


def report(records: Records) -> None:
    """The tables."""
    rows = []
    for name, record in records.cases.items():
        if name.startswith("layer ") and "forward" in record:
            differences = {word: value for word, value in record.items() if word.startswith("difference")}
            if differences:
                print(name, {word: [f"{one:.1e}" for one in value] for word, value in differences.items()})
            for mode in ("forward", "training"):
                ratios, ms = record[mode]["ratio"], record[mode]["ms"]
                best = min((n for n in ratios if n.startswith("triton")), key=ratios.get, default=None)
                cells = [f"{record['mac_ratio']:.3f}", f"{ms['dense'] * 1e3:.1f}"]
                columns = ("plain", *(f"triton-{least}" for least in LEAST))
                cells += [f"{ratios[n]:.3f}" if n in ratios else "-" for n in columns]
                realised = f"{100 * record['mac_ratio'] / ratios[best]:.0f} %" if best else "-"
                rows.append((name[6:], mode, *cells, realised))
    head = ("layer", "mode", "MACs", "dense us", "plain", *(f"triton-{least}" for least in LEAST), "realised")
    table("Single layers: time / dense", head, rows)
    rows = []
    for name, record in records.cases.items():
        for what, ratio in record.get("ratio", {}).items():
            rows.append((name, what, f"{record['ms'][what]:.3f}", f"{ratio:.3f}"))
    table("VGG-16: time / dense", ("step", "network", "ms", "ratio"), rows)
    print_failures(records)


def all_cases(records: Records) -> None:
    """In order of value."""
    torch.backends.cudnn.benchmark = True
    device = records.words.device
    small = device == "cpu"
    batch = 2 if small else 256

    def run(name: str, timing: Callable[..., dict[str, Any]], *given: Any) -> None:
        records.run(name, functools.partial(timing, *given, device))

    def layers(sizes: list[tuple[int, int, int]]) -> None:
        for size, p in itertools.product(sizes, PARTS):
            run(f"layer {size} p={p}", time_layer, size, p, batch)

    if small:
        layers([(16, 16, 4)])
    else:
        records.run("compile", functools.partial(warm, False, 90.0))
        layers(FIRST)
        run("training", time_training, "triton", batch, 32, False)
        run(f"inference {batch}", time_inference, "triton", batch)
        for name in ("triton p=4", "dense", "triton p=16"):
            run(f"profile {name}", profile, name, batch)
        layers(LAYERS[len(FIRST) :])
        run("inference 1", time_inference, "triton", 1)
    run("training, plain", time_training, "plain", batch, 32, False)
    run(f"inference {batch}, plain", time_inference, "plain", batch)
    if not small:
        run("training, compiled", time_training, "triton", batch, 32, True)
        records.run("compile 224", functools.partial(warm, True, 60.0))
        run("training 224", time_training, "triton", 64, 224, False)
    for operator in OPERATORS:
        if operator not in ("standard", "hetconv"):
            run(f"training {operator}", time_operator, operator, batch)


def main() -> None:
    if "--warm" in sys.argv:
        torch.backends.cudnn.benchmark = False
        warm_part(sys.argv[-2] == "large", *map(int, sys.argv[-1].split("/")))
        return
    words = arguments(__doc__)
    report(confined("speed", words, all_cases))


if __name__ == "__main__":
    main()
