"""Times on a GPU by events around replays of a CUDA graph, candidates in turns; on a CPU by a clock."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


def graphed(step: Step, warmups: int = 4) -> Step:
    """The replay of a CUDA graph of `step`, which must read and write the same tensors each time.

    It holds `step`, for the graph does not hold the tensors that it reads: once freed, the next capture gives their
    memory back to the device.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmups):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> Step:
        graph.replay()
        return step

    return replay


def in_turns(steps: Mapping[str, Step], device: str, rounds: int = 9, budget_ms: float = 40.0) -> dict[str, float]:
    """Milliseconds of each step: the median over rounds, in each of which all take a turn, in an order that turns
    around from round to round. A turn repeats the step for about `budget_ms`. On a CPU, which only rehearses: one turn.
    """
    if device == "cpu":
        return {name: _turn(step, 1, device) for name, step in steps.items()}
    repeats = {name: max(1, int(budget_ms / max(_turn(step, 2, device), 1e-3))) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in sorted(steps, key=list(steps).index, reverse=turn % 2 == 1):
            times[name].append(_turn(steps[name], repeats[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def _turn(step: Step, repeats: int, device: str) -> float:
    """Milliseconds of one of `repeats` steps, after one that is not counted."""
    step()
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - start) * 1e3 / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        step()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / repeats
