"""Stage 2: times of operators over those of the dense convolution in the same process, in bfloat16 and channels_last.

First the single layers of VGG-16 on CIFAR-10, then its training step and its fused form, both as CUDA graphs; the
dense convolutions with cuDNN's own choice by timing.
"""

import argparse
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
from records import Records, arguments, table
from torch import Tensor, nn

from convrepro.ops import OPERATORS, hetconv_launch

LAYERS = [(64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4)]
LAYERS += [(512, 512, 2)]
"""Channels, filters, height and width."""
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
            failed[name] = f"{type(error).__name__}: {error}"[:1000]
            print(f"  {name}: {failed[name][:200]}")
    times = in_turns(steps, device, **({"rounds": 2, "budget_ms": 1.0} if device == "cpu" else {}))
    return {"ms": times, "ratio": {name: time / times["dense"] for name, time in times.items()}, "failed": failed}


def time_layer(size: tuple[int, int, int], p: int, batch: int, device: str) -> dict[str, Any]:
    """Forward, and forward and backward, of the dense, the plain and the Triton form at each of `LEAST`."""
    channels, filters, side = size
    x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    words = channels, filters, device
    built = {"dense": layer(*words), "plain": layer(*words, p)}
    record: dict[str, Any] = {"mac_ratio": mac_ratio(p), "kernels": {}}
    found: dict[str, dict[str, Step]] = {"forward": {}, "training": {}}
    for name, module in built.items():
        for mode, step in layer_steps(module, x).items():
            found[mode][name] = graphed(step) if device == "cuda" else step
    usual = hetconv_launch.LEAST_BLOCK
    for least in LEAST if device == "cuda" else ():
        if least > channels // 2:  # all blocks merged: a dense convolution
            continue
        hetconv_launch.LEAST_BLOCK = least
        try:
            before = set(hetconv_launch.timed)
            module = layer(*words, p, "triton")
            module.load_state_dict(built["plain"].state_dict())
            for mode, step in layer_steps(module, x).items():
                found[mode][f"triton-{least}"] = graphed(step)
            record[f"difference {least}"] = difference(module, built["plain"], x)
        finally:
            hetconv_launch.LEAST_BLOCK = usual
        for kind in set(hetconv_launch.timed) - before:
            times = hetconv_launch.timed[kind]
            record["kernels"][f"{least} {kind}"] = {str(tuple(tile)): time for tile, time in times.items()}
    for mode, steps in found.items():
        times = in_turns(steps, device, rounds=5, budget_ms=15.0 if device == "cuda" else 1.0)
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


def variants(device: str) -> dict[str, tuple[str, dict[str, object]]]:
    """HetConv's networks by name: operator and knobs."""
    forms = ("plain", "triton") if device == "cuda" else ("plain",)
    found = {f"{form} p={p}": ("hetconv", {"p": p, "form": form}) for p in PARTS for form in forms}
    return {"dense": ("standard", {}), **found}


def time_training(batch: int, device: str, compiled: bool) -> dict[str, Any]:
    def make(operator: str, knobs: dict[str, object]) -> Step:
        net = network(operator, device, **knobs)
        return training_step(torch.compile(net) if compiled else net, batch, device)

    given = {name: words for name, words in variants(device).items() if not (compiled and name.startswith("plain"))}
    return compare({name: functools.partial(make, *words) for name, words in given.items()}, device)


def time_inference(batch: int, device: str) -> dict[str, Any]:
    def make(operator: str, knobs: dict[str, object], relu: bool) -> Step:
        return inference_step(network(operator, device, **knobs), batch, device, relu)

    makers = {name: functools.partial(make, *words, True) for name, words in variants(device).items()}
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
    operator, knobs = variants(device)[name]
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


def warm(processes: int) -> dict[str, Any]:
    """Compile the kernels of all layers in several processes, which share Triton's cache; their timings are dropped."""
    command = [sys.executable, __file__, "--warm"]
    parts = [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]
    try:
        return {"status": [part.wait(timeout=100) for part in parts]}
    finally:
        for part in parts:
            part.kill()


def warm_part(i: int, of: int) -> None:
    work = {}
    for channels, filters, side in LAYERS:
        for p, least in itertools.product(PARTS, (n for n in LEAST if 2 * n <= channels)):
            merged = max(1, min(least, channels) * p // channels)
            work.setdefault((channels * merged // p, filters * merged // p, side), (channels, filters, p, least))
    for (_, _, side), (channels, filters, p, least) in list(work.items())[i::of]:
        hetconv_launch.LEAST_BLOCK = least
        x = torch.randn(256, side, side, channels, device="cuda", dtype=torch.bfloat16).movedim(-1, 1)
        layer_steps(layer(channels, filters, "cuda", p, "triton"), x)["training"]()


def report(records: Records) -> None:
    """The tables."""
    rows = []
    for name, record in records.cases.items():
        if name.startswith("layer ") and "forward" in record:
            for mode in ("forward", "training"):
                ratios, ms = record[mode]["ratio"], record[mode]["ms"]
                best = min((n for n in ratios if n.startswith("triton")), key=ratios.get, default=None)
                if "difference 32" in record and mode == "forward":
                    print(name, {k: [f"{d:.1e}" for d in v] for k, v in record.items() if k.startswith("difference")})
                cells = [f"{record['mac_ratio']:.3f}", f"{ms['dense'] * 1e3:.1f}", f"{ratios['plain']:.3f}"]
                cells += [f"{ratios[n]:.3f}" if n in ratios else "-" for n in (f"triton-{least}" for least in LEAST)]
                realised = f"{100 * record['mac_ratio'] / ratios[best]:.0f} %" if best else "-"
                rows.append((name[6:], mode, *cells, realised))
    head = ("layer", "mode", "MACs", "dense us", "plain", *(f"triton-{least}" for least in LEAST), "realised")
    table("Single layers: time / dense", head, rows)
    rows = []
    for name, record in records.cases.items():
        for what, ratio in record.get("ratio", {}).items():
            rows.append((name, what, f"{record['ms'][what]:.3f}", f"{ratio:.3f}"))
    table("VGG-16, CIFAR-10: time / dense", ("step", "network", "ms", "ratio"), rows)


def main() -> None:
    torch.backends.cudnn.benchmark = True
    if "--warm" in sys.argv:
        warm_part(*map(int, sys.argv[-1].split("/")))
        return
    words: argparse.Namespace = arguments(__doc__)
    records, device = Records("speed", words), words.device
    small = device == "cpu"
    batch = 2 if small else 256

    def run(name: str, timing: Callable[..., dict[str, Any]], *given: Any) -> None:
        records.run(name, functools.partial(timing, *given, device))

    if not small:
        records.run("compile", functools.partial(warm, min(14, os.cpu_count() or 1)))
    for size in [(16, 16, 4)] if small else LAYERS:
        for p in PARTS:
            run(f"layer {size} p={p}", time_layer, size, p, batch)
    records.run("training", lambda: time_training(batch, device, False))
    for images in (batch, 1):
        run(f"inference {images}", time_inference, images)
    if not small:
        for name in ("dense", "triton p=4", "triton p=16"):
            run(f"profile {name}", profile, name, batch)
        records.run("training, compiled", lambda: time_training(batch, device, True))
    for operator in OPERATORS:
        if operator not in ("standard", "hetconv"):
            run(f"training {operator}", time_operator, operator, batch)
    report(records)


if __name__ == "__main__":
    main()
