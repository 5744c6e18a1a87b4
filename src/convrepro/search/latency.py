"""A bound on the time that a network of a search takes, measured beside the dense network on the worker's machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convrepro.errors import ConvReproError
from convrepro.evidence.speed import Pair, Setting, compare
from convrepro.models.export import check_target
from convrepro.runs.comparison import DENSE
from convrepro.search.space import Space


@dataclass(frozen=True)
class Latency:
    """The largest time of a batch.

    Attributes:
        share: of the dense network's time, in (0, 1].
        mode: "inference" times the fused form in torch, "exported" the file in onnxruntime.
        batch_size: images in a batch.
    """

    share: float
    mode: str
    batch_size: int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConvReproError(
                f"--max-latency {self.share:g} must be above 0 and at most 1: a share of the dense network's time, "
                "which is measured in turns with each network's"
            )
        if self.batch_size < 1:
            raise ConvReproError(f"--latency-batch {self.batch_size} must be at least 1")
        if self.mode == "exported":
            check_target(Path("network.onnx"))

    def of(self, space: Space, params: Mapping[str, str]) -> float:
        """The time of a batch divided by the dense network's: the median over the rounds.

        Raises ConvReproError where the network cannot be fused or exported.
        """
        own, dense = (*space.base, *space.overrides(params)), (*space.base, "conv=standard")
        pair = Pair("found", own, DENSE, dense, self.batch_size)
        setting = Setting(batch_size=self.batch_size, modes=(self.mode,))
        return compare(pair, setting).ratios[self.mode].median

    def __str__(self) -> str:
        return f"{self.share:g} of the dense network's time ({self.mode}, batches of {self.batch_size})"
