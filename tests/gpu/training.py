"""Stage 3: this package's own training: its images per second, the host's waits, and a run that is killed and goes on.

All in turns in one process; in order of value.
"""

import functools
from typing import Any

from carried import DATA, SAMPLE, missing_data, missing_packages
from records import Records, arguments, confined, print_failures, table

MODELS = ("vgg16_cifar", "resnet20_cifar")
SMALL = "resnet8_cifar"


def all_cases(records: Records) -> None:
    """In order of value."""
    from resumed import resumed
    from turns import ROUNDS, WATCHED, host_syncs, overrides, throughput

    device = records.words.device
    rehearsal = device == "cpu"
    sample = rehearsal or missing_data() is not None
    records.content["data"] = SAMPLE if sample else DATA
    batch = 16 if rehearsal else 128
    images = 4 * batch if rehearsal else batch * (46 if sample else 200)
    words = functools.partial(overrides, device=device, sample=sample, batch=batch)
    long = functools.partial(words, images=images, epochs=2 if rehearsal else 1 + ROUNDS)

    def timed(model: str, *more: str) -> dict[str, Any]:
        return throughput([*long(model), *more], device, records.left)

    models = (SMALL,) if rehearsal else MODELS
    for model in models:
        records.run(f"throughput {model}", functools.partial(timed, model))
    for model in models:
        short = words(model, images=batch * (WATCHED.stop + 2), epochs=1)
        records.run(f"syncs {model}", functools.partial(host_syncs, short, device))
    broken = words(SMALL, images=batch * (8 if rehearsal else 46), epochs=2 if rehearsal else 6)
    records.run(f"resumed {SMALL}", functools.partial(resumed, broken, device))
    for model in () if rehearsal else reversed(models):
        records.run(f"throughput {model} compiled", functools.partial(timed, model, "trainer.compile=true"))


def report(records: Records) -> None:
    """The tables."""
    good = {name: record for name, record in records.cases.items() if "error" not in record}
    rows = []
    for name, record in good.items():
        for what, speed in record.get("images_per_second", {}).items():
            ratio = record["ratio"].get(what)
            rows.append((name, what, speed, "" if ratio is None else f"{ratio:.3f}"))
    data = records.content.get("data")
    table(f"Images/s on {data}", ("case", "training by", "images/s", "package / this"), rows)
    for name, record in good.items():
        if "syncs" in record:
            print(f"{name}: {record['syncs']} in {record['steps']} steps: {record['where']}")
        if "killed_at" in record:
            print(f"{name}: killed after step {record['killed_at']}, equal: {record['equal']}, top-1: {record['top1']}")
    print_failures(records)


def main() -> None:
    words = arguments(__doc__)
    if reason := missing_packages():
        Records("training", words).skip(reason)
        return
    report(confined("training", words, all_cases))


if __name__ == "__main__":
    main()
