"""Goals of what surrounds the operators: data path, start-up, training loop, counting."""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from goal import Amount, Goal, Step
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from convrepro.config.compose import compose_config
from convrepro.config.scientific import scientific
from convrepro.data.loader import BatchLoader, Normalize
from convrepro.data.memory import MemorySource
from convrepro.data.sets import Split
from convrepro.evidence import counts
from convrepro.evidence.count_cache import CountCache
from convrepro.evidence.statics import count_tables
from convrepro.models.build import build_network
from convrepro.runs.identity import Identity
from convrepro.runs.protocol import Protocol
from convrepro.tables import Row, list_tables, load_table
from convrepro.training.progress import Progress
from convrepro.training.run import Run, assemble

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES, BATCH = 12_800, 128


def images() -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.randint(10, (IMAGES,), generator=generator))


class PilImages(Dataset):
    """The same images through PIL and torchvision's transforms."""

    def __init__(self) -> None:
        self.split = images()
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[i].numpy())), int(self.split.labels[i])


def exhausting(loader: DataLoader | BatchLoader) -> Step:
    def step() -> None:
        for _ in loader:
            pass

    return step


def in_memory() -> Step:
    source = MemorySource(images(), Normalize(MEAN, STD), flip=True, crop_padding=4)
    return exhausting(BatchLoader(source, BATCH, seed=0))


def pil(workers: int) -> Step:
    words = {"num_workers": workers, "persistent_workers": workers > 0}
    return exhausting(DataLoader(PilImages(), BATCH, shuffle=True, **words))


def process(*words: str) -> Callable[[], Step]:
    """Builds the step that runs Python with these words in a process of its own."""
    return lambda: partial(subprocess.run, [sys.executable, *words], check=True, capture_output=True)


STEPS, SIDE, EXAMPLES = 1000, 28, 32


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 10))


def batches(number: int) -> DataLoader:
    """The same batches in each epoch, made before."""
    made = [(torch.randn(EXAMPLES, 1, SIDE, SIDE), torch.randint(10, (EXAMPLES,))) for _ in range(number)]
    return DataLoader(made, batch_size=None)


class Minimal(L.LightningModule):
    """Nothing but the loss and the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def minimal_loop() -> Step:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = batches(STEPS)

    def step() -> None:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        L.Trainer(accelerator="cpu", max_epochs=1, **off).fit(Minimal(), data)

    return step


def real_loop() -> Step:
    """An epoch as the suite trains it, with validation, history, progress and a checkpoint at its end."""
    data, validation = batches(STEPS), batches(2)
    words = ["trainer=cpu", "logger=none", "recipe.epochs=1", f"recipe.batch_size={EXAMPLES}"]
    identity = Identity("adhoc", "loop", 0, "paper")

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            progress = Progress(Path(folder), 1, lambda line: None)
            cfg = compose_config([*words, f"runs={folder}"])
            module, trainer, _ = assemble(Run(cfg, words, Protocol(scientific(cfg)), identity), tiny(), {}, progress)
            trainer.fit(module, data, validation)

    return step


NETWORKS = (
    ["model=vgg16_cifar", "data=cifar10"],
    ["model=vgg16", "data=imagenet"],
    ["model=resnet18", "data=imagenet"],
    ["model=resnet50", "data=imagenet"],
)
RATES = [[f"recipe.optimizer.lr={0.01 * (i + 1):.2f}"] for i in range(15)]
OPERATORS = [
    ["conv=standard"],
    ["conv=dwc_pwc"],
    *(["conv=hetconv", f"conv.p={p}"] for p in (2, 4, 8, 16, 32)),
    *(["conv=gwc_pwc", f"conv.num_groups={groups}"] for groups in (2, 4, 8)),
    *(["conv=igcv1", f"conv.primary_partitions={partitions}"] for partitions in (4, 8, 16)),
    *(["conv=shift", f"conv.variant={variant}"] for variant in ("q", "ps")),
]


def rows(variants: list[list[str]]) -> list[list[str]]:
    """60 rows: each of the networks in 15 variants."""
    return [[*network, *words] for network in NETWORKS for words in variants]


def counted_as_table(variants: list[list[str]]) -> Step:
    """Seconds in which the rows are counted as `convrepro count` counts a table's, nothing counted before."""
    some = load_table(list_tables()[0])
    named = [Row(id=str(i), label="", overrides=tuple(words), published={}) for i, words in enumerate(rows(variants))]
    table = replace(some, base=(), rows=tuple(named))

    def step() -> float:
        counts.forget()
        started = time.perf_counter()
        assert len(list(counts.recount([(table, row) for row in table.rows], lambda told: None))) == len(table.rows)
        return time.perf_counter() - started

    return step


def counted_row_by_row(variants: list[list[str]]) -> Step:
    """Seconds in which fvcore counts the network of each row, freshly initialised."""

    def step() -> float:
        started = time.perf_counter()
        for words in rows(variants):
            cfg = compose_config(words)
            network = build_network(cfg)[0].eval()
            image = torch.zeros(1, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
            FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        return time.perf_counter() - started

    return step


def all_tables_counted() -> Step:
    tables = [load_table(name) for name in list_tables()]

    def step() -> float:
        counts.forget()
        with tempfile.TemporaryDirectory() as empty:
            started = time.perf_counter()
            count_tables(tables, cache=CountCache(Path(empty)))
            return time.perf_counter() - started

    return step


def seconds_of(*words: str) -> Step:
    """Seconds that a command takes as a process of its own, once all that it may keep has been made."""
    run = process("-m", "convrepro.cli", *words)()
    run()

    def step() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return step


def constant(seconds: float) -> Step:
    return lambda: seconds


def goals() -> list[Goal]:
    found = [
        Goal("data-0-workers", "torchvision's PIL pipeline, no workers", 1 / 20, in_memory, partial(pil, 0)),
        Goal("data-2-workers", "torchvision's PIL pipeline, 2 workers", 1 / 10, in_memory, partial(pil, 2)),
    ]
    imports = process("-c", "import torch, lightning")
    for words in (["--help"], ["list"], ["show", "hetconv/table1"]):
        name = f"start-{words[0].strip('-')}"
        found.append(Goal(name, "import torch, lightning", 0.10, process("-m", "convrepro.cli", *words), imports))
    found.append(Goal("loop", "minimal Trainer", 1.25, real_loop, minimal_loop))
    for name, variants, bound in (("60-rows-of-4-networks", RATES, 0.15), ("60-rows-of-60-networks", OPERATORS, 0.35)):
        steps = partial(counted_as_table, variants), partial(counted_row_by_row, variants)
        found.append(Amount(f"count-{name}", "row by row with fvcore", bound, *steps, rounds=1, unit="seconds"))
    cold = partial(constant, 60.0)
    found.append(Amount("count-all-tables", "a minute", 1.0, all_tables_counted, cold, rounds=1, unit="seconds"))
    for name, words in (("count-all-again", ["count", "all"]), ("report-all", ["report"])):
        steps = partial(seconds_of, *words), partial(constant, 5.0)
        found.append(Amount(name, "5 seconds", 1.0, *steps, rounds=3, unit="seconds"))
    return found
