"""What a comparison measures besides its runs: speed against the dense network, size of the exported file, and the
accuracy right after conversion. `<tables>/<paper>/compared/<table>.json` holds it.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.compose import compose_config
from convrepro.config.scientific import alike
from convrepro.config.strict import ON_DISK, read_file
from convrepro.errors import ConvReproError
from convrepro.evidence import speed
from convrepro.evidence.speed import Pair, Setting, compare, line, where_and_how
from convrepro.evidence.speed_record import Place, Positive, Ratio
from convrepro.models.build import build_network
from convrepro.models.export import check_target, export
from convrepro.runs.comparison import DENSE
from convrepro.runs.storage import write_json
from convrepro.tables import Row, Table

FILE = "network.onnx"


@with_config(ON_DISK)
class Measured(TypedDict):
    """What was measured of a row; `exported_bytes` is null where the network could not be exported, with the reason.

    `converted` is the top-1 accuracy of the converted network by seed, before it is trained.
    """

    overrides: list[str]
    exported_bytes: Annotated[int, Field(gt=0)] | None
    reason: NotRequired[str]
    macs_ratio: Positive
    ratios: dict[str, Ratio]
    converted: NotRequired[dict[str, float]]
    commit: NotRequired[str | None]
    time: NotRequired[str]


@with_config(ON_DISK)
class Record(TypedDict):
    """A comparison on disk; `refused` are operators that the network cannot have, with the reason, by title."""

    schema: Literal[1]
    table: str
    refused: dict[str, str]
    rows: dict[str, Measured]
    setting: dict[str, Any]
    environment: Place
    time: str


def record_path(table: str, root: Path) -> Path:
    """Where the record of the comparison `paper/name` is."""
    paper, name = table.split("/")
    return root / paper / "compared" / f"{name}.json"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _ratio(found: speed.Ratio) -> Ratio:
    return {"median": found.median, "low": found.low, "high": found.high, "seconds": found.seconds}


class Notes:
    """The record of a comparison, kept on disk after each change, so that an interruption loses none of it."""

    def __init__(self, table: Table, root: Path, setting: Setting, refused: Mapping[str, str]) -> None:
        self.table, self.path, self.setting = table, record_path(table.name, root), setting
        environment: Any = where_and_how(setting)
        rows = {row.id: row for row in table.rows}
        kept = {
            name: found
            for name, found in self._earlier(environment).items()
            if name in rows and alike(found["overrides"], table.overrides(rows[name]))
        }
        self.record: Record = {
            "schema": 1,
            "table": table.name,
            "refused": dict(refused),
            "rows": kept,
            "setting": asdict(setting),
            "environment": environment,
            "time": _now(),
        }
        write_json(self.path, self.record)

    def _earlier(self, environment: Place) -> dict[str, Measured]:
        """The rows on record, if they were measured in the same way on the same device."""
        if not self.path.exists():
            return {}
        record = read_file(Record, self.path)
        was, now = ({**how, "modes": None} for how in (record["setting"], asdict(self.setting)))
        same = was == now and all(record["environment"][key] == environment[key] for key in ("device", "threads"))
        for found in record["rows"].values():
            found.setdefault("commit", record["environment"].get("commit"))
            found.setdefault("time", record["time"])
        return record["rows"] if same else {}

    def measure(self, echo: Callable[[str], None]) -> None:
        """Measures speed and size of each row that is not on record with these modes.

        Candidate and dense network run in turns. What cannot be exported is measured in the other modes.
        """
        dense = self.table.row(DENSE)
        for row in self.table.rows:
            found = self.record["rows"].get(row.id)
            if found and (row is dense or set(self.setting.modes) <= set(found["ratios"]) or "reason" in found):
                continue
            size, reason = self._exported_size(row)
            modes = tuple(m for m in self.setting.modes if size or m != "exported")
            pair = Pair(row.label, self._overrides(row), DENSE, self._overrides(dense), self.setting.batch_size)
            measured: Measured = {
                "overrides": list(self.table.overrides(row)),
                "exported_bytes": size,
                "macs_ratio": 1.0,
                "ratios": {},
                "commit": self.record["environment"].get("commit"),
                "time": _now(),
            }
            if row is not dense:
                timed = compare(pair, replace(self.setting, modes=modes))
                echo(line(timed))
                measured["macs_ratio"] = timed.macs_ratio
                measured["ratios"] = {mode: _ratio(ratio) for mode, ratio in timed.ratios.items()}
            if reason:
                measured["reason"] = reason
            if found and "converted" in found:
                measured["converted"] = found["converted"]
            self.record["rows"][row.id] = measured
            write_json(self.path, self.record)

    def note_converted(self, row: str, seed: int, top1: float) -> None:
        """Keeps the accuracy of a converted network."""
        if row in self.record["rows"]:
            self.record["rows"][row].setdefault("converted", {})[str(seed)] = top1
            write_json(self.path, self.record)

    def _overrides(self, row: Row) -> tuple[str, ...]:
        return tuple(self.table.overrides(row))

    def _exported_size(self, row: Row) -> tuple[int | None, str]:
        """The bytes of the network in an ONNX file, or None and why there is no such file."""
        cfg = compose_config(self._overrides(row)).model_copy(update={"weights": None})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            try:
                check_target(path)
                image = torch.zeros(1, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
                export(build_network(cfg)[0], image, path)
            except ConvReproError as error:
                return None, str(error)
            return sum(file.stat().st_size for file in Path(folder).iterdir()), ""
