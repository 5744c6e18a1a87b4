"""Time beside MACs: a network against the dense one whose place it takes, both timed in turns in one process.

The clock of a machine under other load drifts by more than the operators differ. So candidate and baseline take turns,
in an order that is reversed from round to round; what counts is the ratio within a round, its median and quartiles.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convrepro.complexity.network import count_network
from convrepro.config.compose import compose_config
from convrepro.config.overrides import without
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.models.export import check_target, export, fuse, load
from convrepro.runs.environment import describe
from convrepro.tables import Table

MODES = ("train", "inference", "exported")


@dataclass(frozen=True)
class Setting:
    """How to time: images in a batch (a suite has its own), threads (0: torch's choice), memory format, rounds, what.

    modes: "train" is one step of training; "inference" one batch in the fused form; "exported" the same in onnxruntime.
    """

    batch_size: int = 128
    threads: int = 0
    channels_last: bool = True
    rounds: int = 7
    modes: tuple[str, ...] = ("train", "inference")

    def __post_init__(self) -> None:
        for word, least in (("batch_size", 1), ("threads", 0), ("rounds", 1)):
            if getattr(self, word) < least:
                raise ConvReproError(f"{word}={getattr(self, word)} must be at least {least}")
        if unknown := set(self.modes) - set(MODES):
            raise ConvReproError(f"{min(unknown)!r} cannot be timed; valid: {', '.join(MODES)}")


@dataclass(frozen=True)
class Ratio:
    """Time of the candidate over the baseline's: median and quartiles over the rounds; seconds are medians."""

    median: float
    low: float
    high: float
    seconds: float
    baseline_seconds: float


@dataclass(frozen=True)
class Pair:
    """A network and the one that it is timed against, by their overrides, with batches of `batch_size` images.

    group: what it is listed under; "" for a row or network of the user's choice.
    """

    name: str
    overrides: tuple[str, ...]
    baseline: str
    baseline_overrides: tuple[str, ...]
    batch_size: int
    group: str = ""


@dataclass(frozen=True)
class Timing:
    """A network against its baseline.

    macs_ratio: the candidate's MACs over the baseline's. ratios: by mode. other_load: cores that others kept busy.
    """

    pair: Pair
    macs_ratio: float
    ratios: dict[str, Ratio]
    other_load: float | None

    def realised(self, mode: str) -> float:
        """The measured speed-up as a share of the speed-up by MACs."""
        return self.macs_ratio / self.ratios[mode].median

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, with the realised share by mode."""
        own = {"name": self.pair.name, "baseline": self.pair.baseline, "batch_size": self.pair.batch_size}
        measured = {
            "macs_ratio": self.macs_ratio,
            "ratios": {mode: asdict(ratio) for mode, ratio in self.ratios.items()},
            "other_load": self.other_load,
            "realised": {mode: self.realised(mode) for mode in self.ratios},
        }
        return ({"group": self.pair.group} if self.pair.group else {}) | own | measured


def pairs_of_table(table: Table, rows: Sequence[str], batch_size: int) -> list[Pair]:
    """Each row against its baseline: the same network with standard convolutions; where the row replaces none, the
    table's first row. Raises ConvReproError for a row that the table lacks or that is not a network of its own.
    """
    able = {row.id: row for row in table.rows if not row.quoted and not row.layers}
    if unknown := [row for row in rows if row not in able]:
        raise ConvReproError(f"{table.name} has no row {unknown[0]!r} to time; valid: {', '.join(able) or 'none'}")
    first = next(iter(able.values()), None)
    pairs = []
    for row in able.values():
        own = tuple(table.overrides(row))
        dense = _dense(own)
        if (rows and row.id not in rows) or (dense is None and row is first):
            continue
        baseline = ("standard", dense) if dense else (first.id, tuple(table.overrides(first)))
        pairs.append(Pair(row.id, own, *baseline, batch_size))
    return pairs


def pair_of_network(overrides: Sequence[str], batch_size: int) -> Pair:
    """The network that `overrides` describe against the same with standard convolutions.

    Raises ConvReproError where it replaces no convolution.
    """
    dense = _dense(overrides)
    if dense is None:
        raise ConvReproError(
            "conv=standard replaces nothing; name an operator to time against it, such as conv=hetconv"
        )
    cfg = compose_config(overrides)
    return Pair(f"{cfg.model} {cfg.conv.name}", tuple(overrides), "standard", dense, batch_size)


def _dense(overrides: Sequence[str]) -> tuple[str, ...] | None:
    """The overrides with standard convolutions, or None where they have them already."""
    if compose_config(overrides).conv.name == "standard":
        return None
    return tuple(without(overrides, "conv", "se_reduction"))


def compare_all(
    pairs: Sequence[Pair], setting: Setting, watch: Callable[[Timing], None]
) -> tuple[list[Timing], dict[str, str]]:
    """Time the pairs one after the other; returns their timings, and why others could not be timed, by name.

    Raises ConvReproError where packages are missing that "exported" needs.
    """
    if "exported" in setting.modes:
        check_target(Path("network.onnx"))
    timings, failures = [], {}
    for pair in pairs:
        try:
            timings.append(compare(pair, setting))
            watch(timings[-1])
        except ConvReproError as error:
            failures[pair.name] = str(error)
    return timings, failures


def compare(pair: Pair, setting: Setting) -> Timing:
    """Time the two networks in turns, on random images of their data's shape.

    Raises ConvReproError where one cannot be built, counted or exported.
    """
    cfg, base = compose_config(pair.overrides), compose_config(pair.baseline_overrides)
    for configuration in (cfg, base):
        configuration.weights = None
    with _threads(setting.threads):
        networks = [build_network(c)[0] for c in (cfg, base)]
        counts = [
            count_network(network, c, c.data.image_size).total("conv_fc")
            for network, c in zip(networks, (cfg, base), strict=True)
        ]
        before = busy()
        ratios = {}
        for mode in setting.modes:
            steps = [
                _step(network, c, mode, pair.batch_size, setting.channels_last)
                for network, c in zip(networks, (cfg, base), strict=True)
            ]
            ratios[mode] = in_turns(*steps, setting.rounds)
        return Timing(pair, counts[0] / counts[1], ratios, other_load(before))


def _step(network: nn.Module, cfg: RunConfig, mode: str, batch_size: int, channels_last: bool) -> Callable[[], None]:
    """One training step (forward, backward, SGD with momentum) or one evaluation of a batch (see `Setting`)."""
    shape = (batch_size, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    images, labels = torch.randn(shape), torch.randint(cfg.data.num_classes, shape[:1])
    if mode == "exported":
        run = _exported(network, images)
        return lambda: run(images)
    if mode == "inference":
        network, _ = fuse(network)
    if channels_last:
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)

    def evaluate() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def learn() -> None:
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return learn if mode == "train" else evaluate


def _exported(network: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export(network, images[:1], path)
        return load(path, torch.get_num_threads())


def in_turns(candidate: Callable[[], None], baseline: Callable[[], None], rounds: int) -> Ratio:
    """Time two steps in turns, after one round that warms up and does not count."""
    seconds: dict[Callable[[], None], list[float]] = {candidate: [], baseline: []}
    for number in range(rounds + 1):
        for step in (candidate, baseline) if number % 2 else (baseline, candidate):
            started = time.perf_counter()
            step()
            if number:  # the first round warms up
                seconds[step].append(time.perf_counter() - started)
    ratios = [own / other for own, other in zip(seconds[candidate], seconds[baseline], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    own, other = (statistics.median(seconds[step]) for step in (candidate, baseline))
    return Ratio(median, low, high, own, other)


@contextmanager
def _threads(number: int):
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy() -> tuple[float, float, float] | None:
    """(clock, our CPU seconds, everybody's CPU seconds); None where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    idle = int(fields[3]) + int(fields[4])
    everybody = (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), time.process_time(), everybody


def other_load(before: tuple[float, float, float] | None) -> float | None:
    """Cores that others kept busy since `before`."""
    after = busy()
    if before is None or after is None:
        return None
    clock, own, everybody = (b - a for a, b in zip(before, after, strict=True))
    return round(max(everybody - own, 0) / clock, 2)


def where_and_how(setting: Setting) -> dict[str, Any]:
    """The machine, the versions and the code that is loaded now."""
    return {**describe("cpu", "32-true"), "threads": setting.threads or torch.get_num_threads()}


def record(
    what: str, timings: Sequence[Mapping[str, Any]], setting: Setting, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """A JSON-ready account of the timings with where and how (`where_and_how`) they were obtained."""
    return {
        "schema": 1,
        "what": what,
        "setting": asdict(setting),
        "timings": list(timings),
        "environment": dict(environment),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def line(timing: Timing) -> str:
    """What a person reads of a timing."""
    parts = [f"{timing.pair.name:20} MACs x {timing.macs_ratio:.3f}"]
    for mode, ratio in timing.ratios.items():
        parts.append(
            f"{mode} x {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {1000 * ratio.seconds:.1f} ms, "
            f"realised {100 * timing.realised(mode):.0f} %"
        )
    load = "" if timing.other_load is None else f"  other load {timing.other_load:.2f}"
    return f"{'  '.join(parts)}  against {timing.pair.baseline}{load}"
