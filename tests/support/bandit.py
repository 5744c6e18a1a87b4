"""A search without networks: layers whose choices have a known worth, and trials as a search writes them."""

from convrepro.search.trial import Trial

CHOICES = {f"layer{n}": ("dense", "good", "bad", "worse") for n in range(4)}
WORTH = {"dense": 0.5, "good": 1.0, "bad": 0.2, "worse": 0.0}


def finished(number: int, params: dict[str, str], top1: float, attributes: dict, macs: int = 100) -> Trial:
    return {
        "number": number,
        "state": "complete",
        "params": params,
        "system_attrs": attributes,
        "macs": macs,
        "params_count": 1,
        "excess": 0.0,
        "accuracies": {"1": top1},
        "top1": top1,
        "worker": "a test",
        "started": "",
        "ended": "",
    }
