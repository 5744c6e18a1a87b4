"""Every configuration composes, and every mistake is told in one sentence with what would be valid."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from convrepro.config.compose import GROUPS, choices, compose_config
from convrepro.config.overrides import normal
from convrepro.config.paths import CONF
from convrepro.config.plugins import describe
from convrepro.errors import ConvReproError
from convrepro.tables import list_tables, load_table
from convrepro.training.sweep import members

pytestmark = pytest.mark.unit

EVERY = [(group, name) for group in GROUPS for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), EVERY, ids=[f"{g}={n}" for g, n in EVERY])
def test_every_choice_of_every_group_composes(group, name):
    amount = {"plan": ["conv.entries=[{name: hetconv}]"], "none": []}.get(
        name, ["prune.ratio=0.5"] * (group == "prune")
    )
    cfg = compose_config([f"{group}={name}", *amount])
    assert getattr(cfg, group)
    assert describe(group, name), "the first line of a config says what the choice is"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list_tables())
def test_every_row_of_every_table_composes(name):
    table = load_table(name)
    for row in table.to_run:
        cfg = compose_config(table.overrides(row))
        assert cfg.recipe.epochs >= 1
    for row in table.to_run[-1:]:
        by_hydra(table.overrides(row))


def by_hydra(overrides):
    """Compose by Hydra alone, and compare."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        tree = OmegaConf.to_container(compose("train", overrides=[*map(normal, overrides)]), resolve=True)
    composed = compose_config(overrides).model_dump()
    composed["recipe"] = tree["recipe"] = None  # what follows from a budget and a number of epochs has its own tests
    composed["logger"] = composed["logger"] | tree["logger"]
    composed["conv"] = {"include": [], "exclude": [], "unfit": "refuse"} | composed[
        "conv"
    ]  # left out at their defaults
    assert composed == tree


@pytest.mark.parametrize(
    "override",
    [
        *("++model_args.more=1", "++model_args.width=3", "++model_args.width={a: [1]}"),
        *(
            "++model_args={width: 4, b: [2]}",
            "++seed=3",
            "++model_args.deep.er=null",
            "+model_args={a: 1, b: [2]}",
            "seed=3",
            "~model_args.width",
        ),
    ],
)
def test_each_kind_of_override_does_what_it_does_in_hydra(override):
    by_hydra(["conv=shift", "conv.variant=v1", "+model_args.width=2", override])


@pytest.mark.parametrize("before", [[], ["+model_args.width=15"], ["model_args.width=3"]])
def test_an_argument_of_the_model_needs_no_plus(before):
    assert compose_config([*before, "model_args.width=7", "model_args.block.depth=2"]).model_args == {
        "width": 7,
        "block": {"depth": 2},
    }
    assert members([*before, "model_args.width=7,8"])[1][-1] == "++model_args.width=8"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.optimizer.args.alpha=0.9", ["no key 'alpha'", "to add it, write +recipe.optimizer.args.alpha=0.9"]),
        ("conv.grup=2", ["conv=hetconv", "'grup'", "p", "arrangement", "where"]),
        ("conv=hetcon", ["hetcon", "did you mean hetconv", "standard"]),
        ("recipe.optimizer.lrr=1", ["'lrr'", "did you mean lr", "weight_decay"]),
        ("modle=resnet18", ["'modle'", "did you mean model"]),
        ("data=cifar", ["did you mean cifar10"]),
        ("budget=full", ["budget=full", "paper, proxy, smoke"]),
        ("epochs", ["'epochs'", "key=value"]),
        ("conv.p=[1,", ["not an override"]),
        ("seed=abc", ["seed=abc", "must be a whole number"]),
        ("recipe.epochs=0", ["recipe.epochs=0", "must be at least 1"]),
        ("recipe.batch_size=big", ["recipe.batch_size=big", "whole number"]),
        ("trainer.accumulate=0", ["trainer.accumulate=0", "at least 1"]),
        ("budget.epochs=0", ["budget.epochs=0", "at least 1"]),
        ("data.image_size=32.0", ["data.image_size=32.0", "whole number"]),
        ("runs=2024", ["runs=2024", "in quotes"]),
        ("table=hetconv/table1", ["table=hetconv/table1", "row=null", "go together"]),
    ],
)
def test_a_mistake_is_one_sentence_with_the_valid_choices(override, words):
    overrides = ["conv=hetconv", override] if not override.startswith("conv=") else [override]
    with pytest.raises(ConvReproError) as error:
        compose_config(overrides)
    message = str(error.value)
    assert "\n" not in message
    assert "+conv" not in message, "Hydra's advice to append an unknown key would hide the typo"
    assert all(word in message for word in words), message


def test_the_configuration_stays_small():
    assert len(list(CONF.rglob("*.yaml"))) <= 57


def test_a_budget_shrinks_a_large_batch_and_the_learning_rate_in_proportion():
    paper = compose_config(["recipe=shufflenet_v1"]).recipe
    proxy = compose_config(["recipe=shufflenet_v1", "budget=proxy"]).recipe
    assert (paper.batch_size, proxy.batch_size) == (1024, 128)
    assert proxy.optimizer.lr == pytest.approx(paper.optimizer.lr / 8)
    assert compose_config(["budget=proxy", "recipe.batch_size=64"]).recipe.batch_size == 64


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+model_args._target_=os.system", "model_args._target_"),
        ("+model_args={a: [{_target_: os.system}]}", "model_args.a[0]._target_"),
        ("+recipe.schedule.args._target_=builtins.exec", "recipe.schedule.args._target_"),
    ],
)
def test_a_configuration_names_no_python_object(override, key):
    with pytest.raises(ConvReproError, match=re.escape(f"{key} asks for a Python object")):
        compose_config([override])


@pytest.mark.parametrize(
    "override",
    [
        "model=${oc.env:WANDB_API_KEY}",
        "weights='https://reader:hunter2@models.org/net-0123abcd.pth'",
        "weights='https://models.org/net-0123abcd.pth?X-Amz-Signature=hunter2'",
        "+logger.api_key=hunter2",
    ],
)
def test_a_secret_does_not_get_on_record(override, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    with pytest.raises(ConvReproError, match="record of the run") as error:
        compose_config([override])
    assert "hunter2" not in str(error.value)
    assert compose_config(["data_root=${oc.env:HOME}", "weights='https://models.org/net-0123abcd.pth?v=2'"])
