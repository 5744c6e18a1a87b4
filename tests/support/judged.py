"""A small table made by hand, its runs and its claims, for verdicts."""

from decimal import Decimal

from convrepro.tables.parse import parse_table

SOURCED = {"source": "somewhere", "confidence": "found"}
RECALLED = {"source": "recollection", "confidence": "recalled"}


def number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def table(published: dict, *, metric: dict | None = None, claims: list | None = None, seeds=(0, 1, 2), more=()):
    """A table with rows `a` (published as given), `b`, a quoted `q`, and metrics top1, macs and cut (a reduction)."""
    trained = {"unit": "%", "tol": Decimal("0.3"), "why": "one run"} | (metric or {})
    rows = [
        {"id": "a", "label": "A", "overrides": ["conv=standard"], "published": published},
        {"id": "b", "label": "B", "overrides": ["conv=hetconv"], "published": {}},
        {"id": "q", "label": "Q", "quoted": True, "published": {"top1": {"value": Decimal("92.00"), **RECALLED}}},
        *more,
    ]
    content = {
        "title": "t",
        "source": {"paper": "paper", "arxiv": "1", "table": 1},
        "question": "?",
        "base": ["model=resnet18", "data=cifar10"],
        "seeds": list(seeds),
        "metrics": {
            "top1": trained,
            "macs": {"unit": "M", "decimals": 2, "printed": "floor", "count": "conv_fc"},
            "cut": {"unit": "%", "decimals": 2, "printed": "round", "reduction_of": "macs", "base_row": "a"},
        },
        "rows": rows,
        "claims": claims or [],
    }
    return parse_table("paper/t", content, "t.yaml")


def run(top1: float | None, **changes) -> dict:
    result = {
        "status": "done",
        "budget": "paper",
        "overrides": ["model=resnet18", "data=cifar10", "conv=standard"],
        "config": {"data": {"name": "cifar10"}},
        "metrics": {"last": {"top1": top1, "top5": 99.0}, "best": {"top1": 95.0}},
    }
    return result | changes


def runs(*values: float, **changes) -> dict:
    return {"a": {seed: run(value, **changes) for seed, value in enumerate(values)}}


def top1(confidence: dict = SOURCED, value: str | None = "93.93") -> dict:
    return {"top1": {"value": number(value), **confidence}}


def claim(**changes) -> list[dict]:
    return [{"text": "c", "left": "a", "right": "b", "metric": "top1"} | changes]
