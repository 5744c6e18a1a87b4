"""Measures the speed of a network against the dense network that it replaces, beside the ratio of their MACs.

On a machine under other load, speeds drift by more than the operators differ. Therefore candidate and baseline run in
turns in one process, in an order that is reversed from round to round, and the result is the ratio within a round: its
median and quartiles over the rounds.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convrepro.complexity.network import count_network
from convrepro.config.compose import compose_config
from convrepro.config.overrides import without
from convrepro.config.plan import made_by
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError
from convrepro.evidence.speed_record import SCHEMA
from convrepro.models.build import build_network
from convrepro.models.export import check_target, export, fuse, load
from convrepro.runs.environment import describe
from convrepro.tables import Table

MODES = ("train", "inference", "exported")

Step = Callable[[], object]
"""What is timed: one training step, or one batch of inference."""


@dataclass(frozen=True)
class Setting:
    """How speeds are measured.

    Attributes:
        batch_size: images in a batch; the suite of `bench all` names its own.
        threads: CPU threads; 0 leaves the number to torch.
        channels_last: whether networks and images are in channels_last memory format.
        rounds: how often candidate and baseline each run.
        modes: "train" is one training step, "inference" one batch in the fused form, "exported" the same in
            onnxruntime.
    """

    batch_size: int = 128
    threads: int = 0
    channels_last: bool = True
    rounds: int = 7
    modes: tuple[str, ...] = ("train", "inference")

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("threads", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConvReproError(f"{name}={getattr(self, name)} must be at least {least}")
        if unknown := set(self.modes) - set(MODES):
            raise ConvReproError(f"mode {min(unknown)!r} is unknown; valid: {', '.join(MODES)}")


@dataclass(frozen=True)
class Ratio:
    """The candidate's time divided by the baseline's: median and quartiles over the rounds.

    `seconds` and `baseline_seconds` are the median times of the two.
    """

    median: float
    low: float
    high: float
    seconds: float
    baseline_seconds: float


@dataclass(frozen=True)
class Pair:
    """A network and the baseline that it is timed against, each given by its overrides.

    `group` is the heading under which the suite lists the pair; it is "" for a row or network that the user chose.
    """

    name: str
    overrides: tuple[str, ...]
    baseline: str
    baseline_overrides: tuple[str, ...]
    batch_size: int
    group: str = ""


@dataclass(frozen=True)
class PairSpeed:
    """The measured speed of a pair.

    Attributes:
        macs_ratio: the candidate's MACs divided by the baseline's.
        ratios: the ratio of times by mode.
        other_load: the number of cores that other processes kept busy meanwhile; None where it is unknown.
    """

    pair: Pair
    macs_ratio: float
    ratios: dict[str, Ratio]
    other_load: float | None

    def realised(self, mode: str) -> float:
        """The measured speed-up as a share of the speed-up that the MACs promise."""
        return self.macs_ratio / self.ratios[mode].median

    def as_json(self) -> dict[str, Any]:
        """The values as plain data for JSON, with the realised share by mode."""
        own = {"name": self.pair.name, "baseline": self.pair.baseline, "batch_size": self.pair.batch_size}
        measured = {
            "macs_ratio": self.macs_ratio,
            "ratios": {mode: asdict(ratio) for mode, ratio in self.ratios.items()},
            "other_load": self.other_load,
            "realised": {mode: self.realised(mode) for mode in self.ratios},
        }
        return ({"group": self.pair.group} if self.pair.group else {}) | own | measured


def pairs_of_table(table: Table, rows: Sequence[str], batch_size: int) -> list[Pair]:
    """Pairs each of the table's `rows` (all where empty) with its baseline.

    The baseline is the same network with standard convolutions or, for a row that replaces none, the table's first
    row. Raises ConvReproError for a row that the table lacks, or that is not a network of its own.
    """
    networks = [row for row in table.rows if not row.quoted and not row.layers]
    names = [row.id for row in networks]
    if unknown := [row for row in rows if row not in names]:
        raise ConvReproError(f"{table.name} has no row {unknown[0]!r} to time; valid: {', '.join(names) or 'none'}")
    pairs = []
    for row in networks:
        first, own = networks[0], tuple(table.overrides(row))
        dense = _dense(own)
        if (rows and row.id not in rows) or (dense is None and row is first):
            continue
        baseline = ("standard", dense) if dense else (first.id, tuple(table.overrides(first)))
        pairs.append(Pair(row.id, own, *baseline, batch_size))
    return pairs


def pair_of_network(overrides: Sequence[str], batch_size: int) -> Pair:
    """Pairs the network that `overrides` describe with the same network with standard convolutions.

    Raises ConvReproError where `overrides` replace no convolution and remove no filter.
    """
    dense = _dense(overrides)
    if dense is None:
        raise ConvReproError(
            "conv=standard replaces nothing; name an operator to time against it, such as conv=hetconv"
        )
    cfg = compose_config(overrides)
    return Pair(f"{cfg.model} {made_by(cfg.model_dump())}", tuple(overrides), "standard", dense, batch_size)


def _dense(overrides: Sequence[str]) -> tuple[str, ...] | None:
    """The overrides of the same network with standard convolutions and all filters; None where it is that network."""
    cfg = compose_config(overrides)
    if cfg.conv.name == "standard" and not cfg.prune.by:
        return None
    return tuple(without(overrides, "conv", "prune", "se_reduction"))


def compare_all(
    pairs: Sequence[Pair], setting: Setting, watch: Callable[[PairSpeed], None]
) -> tuple[list[PairSpeed], dict[str, str]]:
    """Times the pairs one after the other, and passes each result to `watch`.

    Returns the results, and for each pair that could not be timed the reason, by the pair's name. Raises
    ConvReproError where packages are missing that the mode "exported" needs.
    """
    if "exported" in setting.modes:
        check_target(Path("network.onnx"))
    speeds, failures = [], {}
    for pair in pairs:
        try:
            speeds.append(compare(pair, setting))
            watch(speeds[-1])
        except ConvReproError as error:
            failures[pair.name] = str(error)
    return speeds, failures


def compare(pair: Pair, setting: Setting) -> PairSpeed:
    """Times the two networks of a pair in turns, on random images of the shape of their data.

    Raises ConvReproError where one of them cannot be built, counted or exported.
    """
    cfg, base = (
        compose_config(overrides).model_copy(update={"weights": None})
        for overrides in (pair.overrides, pair.baseline_overrides)
    )
    with _threads(setting.threads):
        networks = [build_network(c)[0] for c in (cfg, base)]
        counts = [
            count_network(network, c, c.data.image_size).total("conv_fc")
            for network, c in zip(networks, (cfg, base), strict=True)
        ]
        before = busy()
        ratios = {}
        for mode in setting.modes:
            candidate, baseline = (
                _step(network, c, mode, pair.batch_size, setting.channels_last)
                for network, c in zip(networks, (cfg, base), strict=True)
            )
            ratios[mode] = in_turns(candidate, baseline, setting.rounds)
        return PairSpeed(pair, float(counts[0] / counts[1]), ratios, other_load(before))


def _step(network: nn.Module, cfg: RunConfig, mode: str, batch_size: int, channels_last: bool) -> Step:
    """One training step (forward, backward, SGD with momentum) or one batch of inference, as `mode` says."""
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


def in_turns(candidate: Step, baseline: Step, rounds: int) -> Ratio:
    """Times two steps in turns, after one round for warming up that does not count."""
    seconds: dict[Step, list[float]] = {candidate: [], baseline: []}
    for number in range(rounds + 1):
        for step in (candidate, baseline) if number % 2 else (baseline, candidate):
            started = time.perf_counter()
            step()
            if number:  # round 0 is for warming up
                seconds[step].append(time.perf_counter() - started)
    ratios = [own / other for own, other in zip(seconds[candidate], seconds[baseline], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    own, other = (statistics.median(seconds[step]) for step in (candidate, baseline))
    return Ratio(median, low, high, own, other)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sets torch's number of threads inside the block; 0 keeps it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy() -> tuple[float, float, float] | None:
    """(clock, CPU seconds of this process, CPU seconds of all processes); None on a system without /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    idle = int(fields[3]) + int(fields[4])
    everybody = (sum(map(int, fields[:8])) - idle) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), time.process_time(), everybody


def other_load(before: tuple[float, float, float] | None) -> float | None:
    """The number of cores that other processes kept busy since `before`, a value of `busy()`."""
    after = busy()
    if before is None or after is None:
        return None
    clock, own, everybody = (b - a for a, b in zip(before, after, strict=True))
    return round(max(everybody - own, 0) / clock, 2)


def where_and_how(setting: Setting) -> dict[str, Any]:
    """The environment that a record names: machine, versions, commit and threads.

    A caller determines it before the first measurement, so that a commit that is made meanwhile is not recorded.
    """
    return {**describe("cpu", "32-true"), "threads": setting.threads or torch.get_num_threads()}


def record(
    what: str, timings: Sequence[Mapping[str, Any]], setting: Setting, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """A record for JSON (see `speed_record`): the measured speeds, the setting and the environment of a run.

    `timings` are speeds `as_json`; `environment` is that of `where_and_how`.
    """
    return {
        "schema": SCHEMA,
        "what": what,
        "setting": asdict(setting),
        "timings": list(timings),
        "environment": dict(environment),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def line(speed: PairSpeed) -> str:
    """The measured speed as one line of text."""
    parts = [f"{speed.pair.name:20} MACs x {speed.macs_ratio:.3f}"]
    for mode, ratio in speed.ratios.items():
        parts.append(
            f"{mode} x {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {1000 * ratio.seconds:.1f} ms, "
            f"realised {100 * speed.realised(mode):.0f} %"
        )
    load = "" if speed.other_load is None else f"  other load {speed.other_load:.2f}"
    return f"{'  '.join(parts)}  against {speed.pair.baseline}{load}"
