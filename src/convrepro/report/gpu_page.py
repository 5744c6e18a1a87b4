"""Writes the page `reproductions/GPU.md`: what ran on a GPU, whether it was correct, and how fast it was."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.strict import set_aside
from convrepro.errors import ConvReproError
from convrepro.evidence.gpu_record import (
    CANDIDATES,
    CORRECTNESS,
    EVIDENCE,
    FOLDER,
    NOT_REACHED,
    SPEED,
    TRAINING,
    Case,
    GpuRecord,
    records,
)
from convrepro.tables.markdown import bullet, escaped, markdown_grid

PAGE = "GPU.md"

INTRODUCTION = """# On a GPU

This page shows what ran on a GPU: whether the operators are correct there, and how fast HetConv is. It is written from
the records in `gpu/`, which the scripts in `tests/gpu` wrote.

- `dense` is the standard convolution of cuDNN, which chooses its kernel by timing.
- `plain` is HetConv as two convolutions of cuDNN that are added, the form that needs nothing but torch.
- `triton` is HetConv in one kernel of this package (`form: triton`). `form: auto` takes it for bfloat16 in
  channels_last on a GPU.

A ratio is a time divided by that of dense in the same process, the median over rounds in which all take turns; it is
below 1 where HetConv is faster. All is in bfloat16 and channels_last, as CUDA graphs; there are no data to read."""

CHECKS = {
    "triton": "HetConv's kernels at real sizes, with each tile, against float64",
    "float32": "operators in float32, outputs and gradients, against float64",
    "bfloat16": "operators under bfloat16 autocast in channels_last, against float32",
    "graph": "operators in a CUDA graph, against the same without",
    "compiled": "operators in torch.compile (aot_eager), against the same without",
    "inductor": "operators in torch.compile (inductor), against the same without",
}

GOALS = {
    ("training", "triton p=4"): 0.70,
    ("training", "triton p=16"): 0.60,
    ("inference 256", "triton p=4"): 0.60,
    ("inference 256", "triton p=16"): 0.45,
}
"""The highest ratio that was aimed at, by case and network."""

STEPS = {
    "training": "training step, batch 256",
    "training, plain": "training step, batch 256",
    "training, compiled": "training step, compiled, batch 256",
    "training 224": "training step at 224x224, batch 64",
    "inference 256": "inference, batch 256",
    "inference 256, plain": "inference, batch 256",
    "inference 1": "inference, batch 1",
}

VGG = """VGG-16 for CIFAR-10, all convolutions but the first replaced. Inference is of the folded form, ReLUs inside of
the convolutions' kernels but for `plain` and `dense, ReLU apart`. A goal is the highest ratio that was aimed at."""

GROUPS = {
    "HetConv's kernels": ("gather_gemm", "gather_weights", "weight_gradient", "sum_splits"),
    "convolutions and matrix products of libraries": ("xmma", "cutlass", "cudnn", "gemm", "conv"),
    "batch norm": ("batch_norm",),
    "max pooling": ("max_pool",),
    "sums, such as gradients of biases": ("reduce_kernel",),
    "optimizer": ("multi_tensor_apply",),
    "element by element: ReLU, casts, copies": ("elementwise",),
}
"""Kernels by parts of their names; the first group that has one counts."""
RANGE = "Optimizer.step#"
"""A range of the profiler, which holds kernels that are counted apart."""
LONGEST = 5

ACCURACY = "the accuracy of a network that was trained on a GPU"
"""What is not measured where no row of a table was trained to its end."""
NEVER = ("training with DDP, on one GPU or several", "other GPUs than those named above")
IF_MISSING = {
    "training, compiled": "a training step that torch.compile has compiled",
    "training 224": "VGG-16 at 224x224 pixels",
    "training dwc_pwc": "the time of other operators than HetConv",
    "shift 4096 4096 1 5": "the kernels in `tests/gpu/candidate_*.py`, such as DeepShift from packed weights",
    "throughput vgg16_cifar": "`trainer=gpu`: the speed of this package's trainer on a GPU",
    "throughput vgg16_cifar compiled": "`trainer.compile=true` on a GPU",
}
"""What is not measured where no record has the case."""


def render(found: Sequence[GpuRecord]) -> str:
    """Renders the page from the records; one that lacks what its page shows is set aside with a warning."""
    parts = [INTRODUCTION]
    for record in found:
        try:
            parts += _section(record)
        except (LookupError, ValueError) as error:
            set_aside(ConvReproError(f"{record.path} has a case without what is shown of it: {error!r}"))
    measured = {name for record in found for name in record.finished("")}
    missing = [text for name, text in IF_MISSING.items() if name not in measured]
    if not any("top1" in case for record in found if record.what == EVIDENCE for case in record.cases.values()):
        missing.append(ACCURACY)
    return "\n\n".join([*parts, "## Not measured", _bullets([*missing, *NEVER])]) + "\n"


def _section(record: GpuRecord) -> list[str]:
    place = record.environment
    title = f"## {record.what.capitalize()} on {escaped(place['name'])}, {escaped(record.time)}"
    versions = f"torch {place['torch']}, cuDNN {place['cudnn']}, Triton {place['triton']}"
    where = f"`{FOLDER}/{record.path.name}`: commit {record.commit}, driver {place.get('driver')}, {versions}."
    parts = [title, *map(escaped, (where, *record.notes))]
    if record.skipped:
        return [*parts, escaped(f"It did not run: {record.skipped}.")]
    write = {
        CORRECTNESS: _correctness,
        SPEED: _speed,
        TRAINING: _training,
        EVIDENCE: _evidence,
        CANDIDATES: _candidates,
    }
    return parts + write[record.what](record)


def _correctness(record: GpuRecord) -> list[str]:
    lines = []
    for kind in dict.fromkeys(name.split()[0] for name in record.cases):
        cases = {name: case for name, case in record.cases.items() if name.split()[0] == kind}
        bad = {name: case for name, case in cases.items() if case.get("error", NOT_REACHED) != NOT_REACHED}
        good = [case for case in cases.values() if "error" not in case and "skipped" not in case]
        not_reached = sum(case.get("error") == NOT_REACHED for case in cases.values())
        worst = max((case["worst"] / case["limit"] for case in good), default=None)
        counts = len(good), len(bad), not_reached
        lines.append([CHECKS.get(kind, kind), *map(str, counts), "" if worst is None else f"{worst:.2f}"])
    header = [("", "what"), *(("cases", title) for title in ("passed", "failed", NOT_REACHED))]
    header.append(("error", "largest / limit"))
    return [_grid(header, lines), *_failures(record)]


def _failures(record: GpuRecord) -> list[str]:
    """The cases that were tried and failed, as a list; nothing where there are none."""
    errors = {name: case.get("error", NOT_REACHED) for name, case in record.cases.items()}
    failed = [f"failed: {name}: {error.splitlines()[0]}" for name, error in errors.items() if error != NOT_REACHED]
    return [_bullets(failed)] if failed else []


TRAINED = """Images per second of this package's training (`trainer=gpu`), without validation and saving, and of two
training loops that are written by hand, with the same network, batch and crops, in turns in one process: the median
over epochs. `loop` has the settings of torch that this package has; for `tuned loop` cuDNN chooses by timing, kernels
need not be deterministic, and the optimizer is fused. A ratio is this package's speed divided by the loop's."""
LEAST_RATIO = 0.80
"""The lowest ratio to `loop` that was aimed at."""


def _training(record: GpuRecord) -> list[str]:
    lines = []
    for name, case in record.finished("throughput ").items():
        _, model, *compiled = name.split()
        speeds = [case["images_per_second"][word] for word in ("package", "loop", "tuned loop")]
        ratios = [speeds[0] / speed for speed in speeds[1:]]
        line = [model, "yes" if compiled else "no", str(case["batch"]), *(f"{speed:.0f}" for speed in speeds)]
        line += [*(f"{ratio:.2f}" for ratio in ratios), f"{LEAST_RATIO:.2f}"]
        lines.append([*line, "met" if ratios[0] >= LEAST_RATIO else "missed"])
    header = [("", "network"), ("", "compiled"), ("size", "batch")]
    header += [("images/s", word) for word in ("this package", "loop", "tuned loop")]
    header += [("ratio", word) for word in ("loop", "tuned loop", "goal")]
    parts = [f"{TRAINED} The images are {escaped(str(record.data))}."]
    if lines:
        parts.append(_grid([*header, ("", "")], lines))
    said = [_waits(name, case) for name, case in record.finished("syncs ").items() if "skipped" not in case]
    said += [_resumption(name, case) for name, case in record.finished("resumed ").items()]
    return [*parts, *([_bullets(said)] if said else []), *_failures(record)]


def _waits(name: str, case: Case) -> str:
    where = ", ".join(f"`{line}` {times}" for line, times in case["where"].items())
    waits = f"the host waited for the GPU {case['syncs']} times in {case['steps']} steps"
    return f"{name.split()[1]}: {waits}{f' ({where})' if where else ''}"


def _resumption(name: str, case: Case) -> str:
    told = f"{name.split()[1]}: a run was killed after step {case['killed_at']} and continued; "
    if case["equal"]:
        told += "its history is that of an unbroken run"
    else:
        told += (
            f"its losses differ from an unbroken run's by at most {case['difference']:.1e} (limit {case['limit']:g})"
        )
    top1 = case["top1"]
    return f"{told}; its checkpoint had a top-1 of {top1['device']:.2f} % on the GPU and {top1['cpu']:.2f} % on the CPU"


ROWS = """Rows of HetConv's Table 1 at the paper's recipe, one seed each, on {data}: a proxy, never evidence for the
paper's numbers. A row without a top-1 was stopped before its last epoch."""


def _evidence(record: GpuRecord) -> list[str]:
    lines = []
    for row, case in record.finished("").items():
        top1 = case.get("top1", {})
        speed = case.get("images_per_second", {}).get("package")
        words = ["" if speed is None else f"{speed:.0f}"]
        words += [f"{top1[word]:.2f}" if top1 else "" for word in ("last", "best")]
        lines.append([row, str(case["epoch"]), str(case["epochs"]), *words])
    header = [("", "row"), ("epochs", "done"), ("epochs", "of"), ("speed", "images/s")]
    header += [("top-1 %", "last"), ("top-1 %", "best")]
    parts = [ROWS.format(data=escaped(str(record.data)))]
    return [*parts, *([_grid(header, lines)] if lines else []), *_failures(record)]


TRIED = """Kernels that are not part of this package, each beside the fastest form that libraries have of its product:
the best of several tiles, in bfloat16. A ratio below 1 says that the candidate is faster."""


def _candidates(record: GpuRecord) -> list[str]:
    lines = []
    for name, case in record.finished("").items():
        forms = case["library"], case["best"]
        times = [f"{1000 * case['ms'][form]:.1f}" for form in forms]
        error = f"{case['worst'] / case['limit']:.2f}"
        lines.append([name, *times, f"{case['ratio'][case['best']]:.2f}", *forms, error])
    header = [("", "product"), ("us", "library"), ("us", "candidate"), ("", "ratio")]
    header += [("form", "library"), ("form", "candidate"), ("error", "largest / limit")]
    return [TRIED, *([_grid(header, lines)] if lines else []), *_failures(record)]


def _speed(record: GpuRecord) -> list[str]:
    parts: list[str] = []
    if steps := _steps(record):
        header = [("", "step"), ("", "network"), *(("time", word) for word in ("ms", "ratio", "goal")), ("", "")]
        parts += ["### VGG-16", VGG, _grid(header, steps)]
    if layers := _layers(record):
        header = [("", "layer"), ("MACs", "ratio")]
        header += [(mode, word) for mode in ("forward", "training") for word in ("dense us", "plain", "triton")]
        parts += ["### Single layers", LAYERS, _grid(header, layers)]
    if record.finished("profile "):
        parts += ["### Where a training step's time goes", *_profiles(record)]
    return parts


LAYERS = """3x3 convolutions of channels to filters at height and width, batch 256. `training` is forward and backward.
The ratio of the MACs is what a kernel without any other cost would reach."""


def _layers(record: GpuRecord) -> list[list[str]]:
    lines = []
    for name, case in record.finished("layer ").items():
        channels, filters, side, part = re.findall(r"\d+", name)
        line = [f"{channels} to {filters} at {side}x{side}, P={part}", f"{case['mac_ratio']:.2f}"]
        for mode in ("forward", "training"):
            ratios = case[mode]["ratio"]
            line += [f"{1000 * case[mode]['ms']['dense']:.0f}", _ratio(ratios, "plain"), _ratio(ratios, "triton-32")]
        lines.append(line)
    return lines


def _ratio(ratios: Mapping[str, float], name: str) -> str:
    return f"{ratios[name]:.2f}" if name in ratios else ""


def _steps(record: GpuRecord) -> list[list[str]]:
    lines = []
    for name, step in STEPS.items():
        case = record.finished("").get(name, {})
        for network, ratio in case.get("ratio", {}).items():
            goal = GOALS.get((name, network))
            words = ["", ""] if goal is None else [f"{goal:.2f}", "met" if ratio <= goal else "missed"]
            lines.append([step, network.replace("p=", "P="), f"{case['ms'][network]:.3f}", f"{ratio:.2f}", *words])
    return lines


def _profiles(record: GpuRecord) -> list[str]:
    """Microseconds of one step by group, and the longest kernels."""
    spent: dict[str, dict[str, float]] = {}
    longest = []
    for name, case in record.finished("profile ").items():
        found = case["kernels"] if isinstance(case["kernels"], list) else []
        kernels = [(kernel, time) for kernel, time, _ in found if not kernel.startswith(RANGE)]
        step = spent[name.removeprefix("profile ")] = dict.fromkeys([*GROUPS, "other"], 0.0)
        for kernel, time in kernels:
            step[_group(kernel)] += time
        words = ", ".join(f"`{_short(kernel)}` {time:.0f}" for kernel, time in kernels[:LONGEST])
        longest.append(f"{name.removeprefix('profile ')}: {words}")
    lines = [[group, *(f"{step[group]:.0f}" for step in spent.values())] for group in [*GROUPS, "other"]]
    lines.append(["all", *(f"{sum(step.values()):.0f}" for step in spent.values())])
    header = [("", "kernels"), *(("us", name) for name in spent)]
    return [PROFILES, _grid(header, lines), "The longest kernels, in microseconds:", _bullets(longest)]


PROFILES = """Microseconds on the GPU of the 40 longest kernels of one step, by torch's profiler, without CUDA graphs.
What HetConv does not touch, such as batch norm, pooling and the sums for biases' gradients, bounds what it can save."""


def _group(kernel: str) -> str:
    groups = (group for group, parts in GROUPS.items() if any(part in kernel for part in parts))
    return next(groups, "other")


def _short(kernel: str) -> str:
    """A kernel's name without its types and namespaces."""
    bare = kernel.removeprefix("void ").replace("(anonymous namespace)::", "").split("<")[0].split("(")[0]
    return bare.split("::")[-1]


def _grid(header: list[tuple[str, str]], lines: list[list[str]]) -> str:
    return "\n".join(markdown_grid((header, lines)))


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(map(bullet, texts))


def write(root: Path = REPRODUCTIONS) -> Path:
    """Writes the page under `root`, from the records there; returns its path."""
    path = root / PAGE
    path.write_text(render(records(root / FOLDER)), encoding="utf-8")
    return path
