"""Every key takes the values that it should and no others: hand-written kinds of keys against generated values."""

import copy
import math

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import given as generated
from hypothesis import strategies as st

import convrepro.training.runner  # noqa: F401 (what it imports starts a process)
from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.config.overrides import quoted
from convrepro.config.schema import RunConfig
from convrepro.config.strict import validated
from convrepro.errors import ConvReproError

pytestmark = pytest.mark.unit

Value = object
TEXTS = ("abc", "../../x", "a b", "x" * 300, "", "a\tb", "32-true", "sgd", "none", "cpu")
VALUES: tuple[Value, ...] = (
    *(None, True, False, 0, 1, 2, -1, 7, 4294967295, 4294967296, 10**20, 0.5, 1.0, 1.5, -0.1, 1e30, math.nan, math.inf),
    *([], [1], [0, 1], [0.5], ["a"], {}, {"a": 1}, "1", "true", "null", "nan"),
    *TEXTS,
)


def whole(least: int, most: float = math.inf):
    return lambda v: type(v) is int and least <= v <= most


def number(least: float, most: float, *, open_end: bool = False):
    def fits(v: Value) -> bool:
        return type(v) in (int, float) and math.isfinite(v) and least <= v <= most and not (open_end and v == most)

    return fits


def nullable(fits):
    return lambda v: v is None or fits(v)


def flag(v: Value) -> bool:
    return type(v) is bool


def one_of(*names: Value):
    return lambda v: any(type(v) is type(name) and v == name for name in names)


def name(v: Value) -> bool:
    allowed = isinstance(v, str) and all(c.isascii() and (c.isalnum() or c in "_.-") for c in v)
    return allowed and 0 < len(v) <= 100 and v[0].isalnum()


def text(v: Value) -> bool:
    return isinstance(v, str) and v != ""


def mapping(v: Value) -> bool:
    return isinstance(v, dict)


def patterns(v: Value) -> bool:
    return text(v) or (isinstance(v, list) and all(map(text, v)))


def empty(v: Value) -> bool:
    return v == []


def never(v: Value) -> bool:
    return False


def devices(v: Value) -> bool:
    return (v in (1, 2) and type(v) is int) or v in ([1], [0, 1])


#: What each key may be, written by hand. A batch of 128 is divided by 1, 2 or two devices alone.
KINDS = {
    "model": name,
    "model_args": mapping,
    "weights": nullable(text),
    "weights_sha256": one_of(None),
    "se_reduction": nullable(whole(1)),
    "train": flag,
    "seed": whole(0, 2**32 - 1),
    "data_root": text,
    "runs": text,
    "table": one_of(None),
    "row": one_of(None),
    "conv.name": name,
    "conv.where": text,
    "conv.include": patterns,
    "conv.exclude": patterns,
    "conv.unfit": never,
    "conv.entries": one_of(None),
    "prune.by": one_of(None),
    "prune.ratio": one_of(None),
    "prune.macs": one_of(None),
    "prune.params": one_of(None),
    "prune.include": empty,
    "prune.exclude": empty,
    "prune.layers": empty,
    "prune.multiple_of": whole(1, 1024),
    "data.name": name,
    "data.root": text,
    "data.download": flag,
    "data.verify": flag,
    "data.channels": one_of(1),
    "data.image_size": whole(4, 8192),
    "data.num_classes": whole(1, 10**6),
    "data.mean": one_of([1], [0.5]),
    "data.std": one_of([1], [0.5]),
    "data.eval_batch_size": whole(1),
    "recipe.name": name,
    "recipe.epochs": whole(1, 10**6),
    "recipe.batch_size": whole(1, 2**24),
    "recipe.optimizer.name": name,
    "recipe.optimizer.lr": number(0, 1000),
    "recipe.optimizer.momentum": number(0, 1, open_end=True),
    "recipe.optimizer.nesterov": flag,
    "recipe.optimizer.weight_decay": number(0, 10),
    "recipe.optimizer.args": nullable(mapping),
    "recipe.optimizer": never,
    "recipe.schedule.name": name,
    "recipe.schedule.args": nullable(mapping),
    "recipe.schedule": never,
    "recipe.label_smoothing": number(0, 1, open_end=True),
    "recipe.init": never,
    "recipe.clip_grad": nullable(lambda v: number(0, 1e6)(v) and v != 0),
    "recipe.ema": nullable(lambda v: number(0, 1, open_end=True)(v) and v != 0),
    "recipe.mixup": number(0, 100),
    "recipe.cutmix": number(0, 100),
    "recipe.augment.flip": flag,
    "recipe.augment.crop_padding": whole(0, 28),
    "recipe.augment": never,
    "recipe.normalize": flag,
    "budget.name": name,
    "budget.epochs": nullable(whole(1, 10**6)),
    "budget.max_batch_size": nullable(whole(1)),
    "budget.train_examples": nullable(whole(1)),
    "budget.test_examples": nullable(whole(1)),
    "budget.max_image_size": nullable(whole(4)),
    "budget.sample": flag,
    "budget.holdout": nullable(lambda v: number(0, 1, open_end=True)(v) and v != 0),
    "trainer.accelerator": one_of("cpu"),
    "trainer.devices": devices,
    "trainer.num_nodes": one_of(1, 2),
    "trainer.strategy": never,
    "trainer.precision": one_of("32-true"),
    "trainer.accumulate": one_of(1, 2),
    "trainer.channels_last": flag,
    "trainer.compile": flag,
    "trainer.deterministic": flag,
    "trainer.num_workers": whole(0, 1024),
    "trainer.checkpoint_steps": nullable(whole(1)),
    "logger.name": one_of("none", "wandb", "csv", "tensorboard"),
    "logger.project": text,
    "logger.entity": nullable(text),
    "logger.mode": never,
    "logger.timeout": lambda v: number(0, 3600)(v) and v != 0,
    "logger.checkpoints": flag,
    "logger.every_n_steps": nullable(whole(1)),
    "bogus": never,
    "trainer.gradient_clip": never,
    "recipe.optimiser.lr": never,
    "data.bogus": never,
    "recipe.augment.bogus": never,
}
TREE = compose_config([]).model_dump()


def given(key: str, value: Value) -> dict:
    """A configuration in which `key` has this value, as Hydra composes it."""
    tree = copy.deepcopy(TREE)
    *places, last = key.split(".")
    inner = tree
    for place in places:
        inner = inner.setdefault(place, {})
    inner[last] = value
    return tree


def keys(model=RunConfig, place: str = "") -> set[str]:
    """Every key of the schema that holds a value of its own."""
    found = set()
    for key, field in model.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and hasattr(inner, "model_fields")
        found |= keys(inner, f"{place}{key}.") if nested else {f"{place}{key}"}
    return found


def test_every_key_of_the_schema_has_a_kind_here():
    assert keys() <= KINDS.keys()


@pytest.mark.parametrize("key", KINDS)
def test_a_key_takes_values_of_its_kind_and_no_others(key):
    for value in VALUES:
        try:
            validated(RunConfig, given(key, value))
            accepted, message = True, ""
        except ConvReproError as error:
            accepted, message = False, str(error)
            assert message.count("\n") == 0, message
            assert len(message) < 400, message
            assert all(character.isprintable() for character in message), repr(message)
        assert accepted == KINDS[key](value), f"{key}={value!r}: {message or 'accepted'}"


def test_an_average_is_not_kept_in_16_bits():
    for precision in ("16-true", "bf16-true"):
        with pytest.raises(
            ConvReproError, match=rf"recipe\.ema=0\.9 averages in steps that .*={precision} rounds away"
        ):
            compose_config(["recipe.ema=0.9", f"trainer.precision={precision}"])
    assert compose_config(["recipe.ema=0.9", "trainer.precision=bf16-mixed"]).recipe.ema == 0.9


def test_there_are_more_than_a_thousand_of_them():
    assert sum(not KINDS[key](value) for key in KINDS for value in VALUES) > 1500


#: How often a verb is tried: those that compose a configuration once more often than those that plan a table.
VERBS = (*("train", "count", "train --cfg", "export") * 4, "train -m", "run", "run --dry-run")
VERBS += ("submit", "submit --dry-run")
#: Bad values that reach the command line here, always and at most; those of `test_secrets` and `test_knobs` do, too.
SOME, MANY = 220, 650
LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**25), 10**25), st.floats(width=32), LETTERS)
ANY = st.one_of(
    SCALARS,
    LETTERS.map(lambda text: text * 30),
    st.lists(st.one_of(st.integers(-5, 5), LETTERS), max_size=3),
    st.dictionaries(st.sampled_from(["a", "name", "lr"]), st.integers(-5, 5), max_size=2),
    st.sampled_from([value for value in VALUES if value != "a\tb"]),
)


def word(value: Value) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        text = quoted(value)
        return text if text.startswith("'") else f"'{text}'"
    if isinstance(value, list):
        return f"[{','.join(map(word, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {word(item)}" for key, item in value.items()) + "}"
    return repr(value)


def forbidden(key: str, value: Value) -> bool:
    try:
        validated(RunConfig, given(key, value))
    except ConvReproError:
        return True
    return False


def merged(key: str, value: Value) -> bool:
    """Whether Hydra adds the value to what the key holds already, instead of putting it in its place."""
    return isinstance(value, dict) and key in ("recipe.optimizer", "recipe.schedule", "recipe.augment")


def command(verb: str, override: str, folder) -> list[str]:
    first, *options = verb.split()
    table = ["deepshift/mnist_v5", "--rows", "fc_q", "data=fashion_sample"] if first in ("run", "submit") else []
    words = [first, *options, *table, override, *([] if override.startswith("runs=") else [f"runs={folder}"])]
    return [*words, "--to", f"{folder}/net.onnx"] if first == "export" else words


@pytest.mark.heavy
@pytest.mark.parametrize("enough", [SOME, pytest.param(MANY, marks=pytest.mark.exhaustive)])
def test_no_verb_takes_a_value_that_the_schema_forbids(enough, tmp_path, capsys, monkeypatch):
    """Each answer has at most 3 lines, and comes before a network is built, an image is read or a file is written."""
    monkeypatch.setattr("convrepro.models.build.create", lambda *_: pytest.fail("a network was built"))
    monkeypatch.setattr("convrepro.cluster.slurm.queue", lambda: [])
    monkeypatch.setattr("convrepro.cluster.slurm.max_array_size", lambda: 1001)
    monkeypatch.setenv("CONVREPRO_SLURM_SITE", "")
    monkeypatch.chdir(tmp_path)
    tried: dict[str, int] = {}
    drawn = settings(
        max_examples=enough // len(KINDS) + 1, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def one(key: str, value: Value, verb: str) -> None:
        override = f"{key}={word(value)}"
        with pytest.raises(SystemExit) as stop:
            main(command(verb, override, tmp_path))
        said = capsys.readouterr()
        answer = said.out + said.err
        assert stop.value.code == 2, (verb, override, answer)
        assert "Traceback" not in answer, (verb, override, answer)
        assert len(answer.splitlines()) <= 3, (verb, override, answer)
        assert len(answer) < 1500, (verb, override, answer)
        tried[key] = tried.get(key, 0) + 1

    for place, key in enumerate(KINDS):
        bad = ANY.filter(lambda value, key=key: forbidden(key, value) and not merged(key, value))
        same_each_time = seed(place)
        same_each_time(drawn(generated(st.just(key), bad, st.sampled_from(VERBS))(one)))()
    assert sum(tried.values()) >= enough
    assert tried.keys() == KINDS.keys()
    assert not list(tmp_path.iterdir())
