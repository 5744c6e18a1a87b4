"""The configuration of one run as a typed, frozen object: types, ranges and choices of every key of `conf/`.

A field that is marked `execution()` says how a run is executed or where its files are; all others determine the result
(see `runs.protocol`). What a value may be is said here and nowhere else; names of networks, operators, optimizers and
schedules are checked by the code that has them, before any data is read.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from convrepro.config.plan import conv_name
from convrepro.config.strict import Record, Rule, text_of

EXECUTION = "execution"
#: The name of `conv` that stands for several operators.
PLAN = "plan"


def execution(default: Any = ..., **rules: Any) -> Any:
    """A field that does not determine the result of a run."""
    return Field(default, json_schema_extra={EXECUTION: True}, **rules)


Count = Annotated[int, Field(ge=1)]
Share = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


def _matches(pattern: str, rule: str) -> AfterValidator:
    """A validator that holds a text to a pattern, and says in words what that is."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


NAME = "must be a name: a letter or digit, then letters, digits and _ . - alone, at most 100 of them"
Name = Annotated[str, _matches(r"[A-Za-z0-9][\w.-]{0,99}", NAME)]
MODEL = "must be a model's name, such as resnet18, torchvision:resnet18 or my_package.models:factory"
ModelName = Annotated[str, _matches(r"[A-Za-z0-9][\w.-]{0,99}|[A-Za-z_][\w.]{0,99}:[A-Za-z_]\w{0,99}", MODEL)]
TableName = Annotated[str, _matches(r"[\w-]{1,100}/[\w-]{1,100}", "must be a table's name, such as hetconv/table1")]
RowName = Annotated[str, _matches(r"[a-z0-9_]{1,100}(\+[0-9a-f]{6,64})?", "must be a row's name, such as p4")]
Arguments = dict[str, Any]


def _drawable(alpha: float) -> float:
    """A Beta distribution of a smaller alpha has no number drawn from it in float64."""
    if 0 < alpha < 1e-6:
        raise ValueError("must be 0, or from 1e-6 to 100")
    return alpha


Alpha = Annotated[FiniteFloat, Field(ge=0, le=100), AfterValidator(_drawable)]

Precision = Literal[
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"
]  # fmt: skip


def _listed(value: object) -> object:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


Patterns = Annotated[list[Text], BeforeValidator(_listed)]


class _Placed(Record):
    """An operator's knobs, which its signature types, and patterns of layers' names.

    A field at its default is left out of the dump, so that one that is added later changes no record and no digest.
    """

    model_config = ConfigDict(extra="allow")

    name: Name
    include: Patterns = Field(default_factory=list)
    exclude: Patterns = Field(default_factory=list)

    @property
    def knobs(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_serializer(mode="wrap")
    def _without_defaults(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        optional = {key: f.get_default(call_default_factory=True) for key, f in fields.items() if not f.is_required()}
        return {key: value for key, value in whole(self).items() if key not in optional or value != optional[key]}


class Entry(_Placed):
    """One entry of a layer plan: an operator, the rule that says where it goes, and its knobs."""

    where: Text


class Conv(_Placed):
    """The operator, the rule that says where it goes, and its knobs; or the entries of a layer plan."""

    where: Text | None = None
    unfit: Literal["refuse", "keep"] = "refuse"
    entries: Annotated[list[Entry], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Conv":
        if self.name != PLAN:
            if self.entries is not None:
                raise Rule("conv.entries", "...", f"belongs to conv=plan, and conv={self.name} is given")
            if self.where is None:
                raise Rule("conv.where", None, "must be text: a rule such as dense_kxk")
            return self
        if self.entries is None:
            example = "[{include: 'layer1.*', name: hetconv, p: 2}]"
            raise Rule("conv.entries", None, f"must be the plan: a list such as {example}, or a YAML file with one")
        given = {key: getattr(self, key) for key in ("where", "include", "exclude")} | self.knobs
        for key, value in given.items():
            if value:
                raise Rule(f"conv.{key}", value, "is given for a whole plan; give it in an entry of conv.entries")
        return self

    @property
    def plan(self) -> list[Entry]:
        """The entries of the plan; one operator everywhere is the plan with one entry."""
        if self.entries is not None:
            return self.entries
        return [Entry(**{key: value for key, value in self.model_dump().items() if key != "unfit"})]

    @property
    def title(self) -> str:
        """The operator, or the operators of a plan in a few words."""
        return conv_name(self.model_dump())


class Optimizer(Record):
    name: Name
    lr: Annotated[FiniteFloat, Field(ge=0, le=1e3)]
    momentum: Share
    nesterov: bool
    weight_decay: Annotated[FiniteFloat, Field(ge=0, le=10)]
    args: Arguments | None

    @field_validator("name")
    @classmethod
    def _lower(cls, name: str) -> str:
        """Names of optimizers are lower-case in timm."""
        return name.lower()


class Schedule(Record):
    name: Name
    args: Arguments | None


class Augment(Record):
    flip: bool
    crop_padding: Annotated[int, Field(ge=0)]


class Recipe(Record):
    name: Name
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=1, le=1 << 24)]
    optimizer: Optimizer
    schedule: Schedule
    label_smoothing: Share
    init: Literal["torch", "fan_in", "fan_out"]
    augment: Augment
    normalize: bool
    clip_grad: Annotated[FiniteFloat, Field(gt=0, le=1e6)] | None = None
    ema: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0


class Budget(Record):
    name: Name
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None
    max_batch_size: Count | None
    train_examples: Count | None
    test_examples: Count | None
    max_image_size: Count | None
    sample: bool
    holdout: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None


class LayerRatio(Record):
    """The share of filters that layers of some names lose."""

    include: Patterns
    ratio: Share


class Prune(Record):
    """Which filters are removed before training; none with `by=None`.

    A field at its default is no part of the scientific settings, so that runs without pruning keep their digests.
    """

    by: Literal["l1", "bn_scale", "taylor", "random"] | None = None
    ratio: Share | None = None
    macs: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    params: Annotated[FiniteFloat, Field(gt=0, le=1)] | None = None
    include: Patterns = Field(default_factory=list)
    exclude: Patterns = Field(default_factory=list)
    layers: list[LayerRatio] = Field(default_factory=list)
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 1

    @model_validator(mode="after")
    def _one_target(self) -> "Prune":
        targets = {key: value for key in ("ratio", "macs", "params") if (value := getattr(self, key)) is not None}
        if self.by is None:
            given = targets | {key: value for key in ("include", "exclude", "layers") if (value := getattr(self, key))}
            for key, value in given.items():
                raise Rule(f"prune.{key}", value, "needs a score: prune=l1, bn_scale, taylor or random")
        elif len(targets) > 1:
            key, value = list(targets.items())[1]
            raise Rule(f"prune.{key}", value, f"and prune.{next(iter(targets))} are both given; give one of them")
        elif not targets and not self.layers:
            rule = "needs an amount: prune.ratio, prune.macs, prune.params or prune.layers"
            raise Rule("prune.by", self.by, rule)
        return self


class Data(Record):
    name: Name
    root: Text = execution()
    download: bool = execution()
    verify: bool
    channels: Annotated[int, Field(ge=1, le=1024)]
    image_size: Annotated[int, Field(ge=1, le=8192)]
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)]
    mean: list[FiniteFloat]
    std: list[Annotated[FiniteFloat, Field(gt=0)]]
    eval_batch_size: Count = execution()

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> "Data":
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise Rule(
                    f"data.{key}", getattr(self, key), f"must have one value for each of the {self.channels} channels"
                )
        return self


class Trainer(Record):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = execution()
    devices: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = execution()
    num_nodes: Count = execution()
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = execution()
    precision: Precision
    accumulate: Count = execution()
    channels_last: bool = execution()
    compile: bool = execution()
    deterministic: bool | Literal["warn"] = execution()
    num_workers: Annotated[int, Field(ge=0, le=1024)] = execution()
    checkpoint_steps: Count | None = execution()

    @model_validator(mode="after")
    def _numbers_are_of_gpus(self) -> "Trainer":
        if self.accelerator == "cpu" and not isinstance(self.devices, int):
            rule = "names devices by their numbers, which a CPU does not have; give the number of processes, such as 1"
            raise Rule("trainer.devices", self.devices, rule)
        return self

    @property
    def devices_per_node(self) -> int:
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def processes(self) -> int:
        """Devices over all nodes, with a process each."""
        return self.devices_per_node * self.num_nodes


class Logger(Record):
    name: Literal["none", "wandb", "csv", "tensorboard"]
    project: Text = "convrepro"
    entity: Text | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "disabled"
    timeout: Annotated[FiniteFloat, Field(gt=0, le=3600)] = 30
    checkpoints: bool = False
    every_n_steps: Count | None = None

    @model_validator(mode="after")
    def _somebody_logs(self) -> "Logger":
        if self.every_n_steps and self.name == "none":
            rule = "has no effect with logger=none; take logger=wandb, csv or tensorboard"
            raise Rule("logger.every_n_steps", self.every_n_steps, rule)
        return self


class RunConfig(Record):
    """Everything that one run is configured by: the content of `conf/train.yaml` with its groups, resolved."""

    conv: Conv
    prune: Prune = Field(default_factory=Prune)
    data: Data
    recipe: Recipe
    budget: Budget
    trainer: Trainer
    logger: Logger = execution()
    model: ModelName
    model_args: Arguments
    weights: Text | None
    weights_sha256: Text | None
    se_reduction: Count | None
    train: bool
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    data_root: Text = execution()
    runs: Text = execution()
    table: TableName | None = execution()
    row: RowName | None = execution()

    @model_validator(mode="after")
    def _rules(self) -> "RunConfig":
        if (self.table is None) != (self.row is None):
            raise Rule("table", self.table, f"and row={text_of(self.row)} go together: give both, or neither")
        if self.prune.by and self.conv.name != "standard":
            rule = f"goes with conv=standard, and conv={self.conv.name} is given"
            raise Rule("prune.by", self.prune.by, rule)
        if self.weights_sha256 and not self.weights:
            raise Rule("weights_sha256", self.weights_sha256, "is given without weights; it is the digest of that file")
        if self.recipe.augment.crop_padding > self.image_size:
            raise Rule(
                "recipe.augment.crop_padding",
                self.recipe.augment.crop_padding,
                f"must be at most the image's {self.image_size} pixels",
            )
        if self.recipe.ema and self.trainer.precision in ("16-true", "bf16-true"):
            rule = f"averages in steps that trainer.precision={self.trainer.precision} rounds away; take bf16-mixed"
            raise Rule("recipe.ema", self.recipe.ema, rule)
        parts = self.trainer.processes * self.trainer.accumulate
        if self.recipe.batch_size % parts:
            devices = f"devices={self.trainer.devices_per_node} x num_nodes={self.trainer.num_nodes}"
            rule = f"is the global batch; {devices} x accumulate={self.trainer.accumulate} = {parts} must divide it"
            raise Rule("recipe.batch_size", self.recipe.batch_size, rule)
        return self

    @property
    def image_size(self) -> int:
        """Side of the images that this run sees, in pixels."""
        return min(self.data.image_size, self.budget.max_image_size or self.data.image_size)

    @property
    def epochs(self) -> int:
        """Epochs that this run trains."""
        return self.budget.epochs or self.recipe.epochs

    @property
    def loader_batch(self) -> int:
        """Images in one batch on one device, from the recipe's global batch."""
        return self.recipe.batch_size // (self.trainer.processes * self.trainer.accumulate)
