"""The result of a run as `train` writes it, without training."""

from typing import Any

from convrepro.config.compose import compose_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def result(table: str, row: str, overrides: tuple[str, ...], *, seed: int = 0, budget: str = "paper") -> dict[str, Any]:
    """A finished run of these overrides with a top-1 of 90."""
    measures = {"epoch": 1, "top1": 90.0, "top5": 99.0, "loss": 0.5}
    epochs = [{"epoch": n, "step": 10 * n, "train/loss": 1.0, "val/top1": 90.0, "seconds": 2.5} for n in (0, 1)]
    return {
        "schema": 1,
        "status": "done",
        "table": table,
        "row": row,
        "seed": seed,
        "budget": budget,
        "overrides": list(overrides),
        "config": compose_config([*overrides, f"budget={budget}", f"seed={seed}"]).model_dump(),
        "protocol": {"digest": "0" * 64, "data": None, "weights": None},
        "metrics": {"last": measures, "best": measures},
        "static": {"macs": 7_000_000, "params": 9},
        "counts": {"conv_fc": "7000000"},
        "history": epochs,
        "environment": {
            "commit": COMMIT,
            "dirty": False,
            "versions": {"torch": "2.14.0"},
            "device": "cpu: some processor",
            "threads": 2,
            "precision": "32-true",
        },
        "time": {"started": "2026-01-01T00:00:00+00:00", "seconds": 12.5, "images_per_second": 1000.0},
    }
