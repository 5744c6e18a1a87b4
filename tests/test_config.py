"""Every configuration composes, and every mistake is told in one sentence with what would be valid."""

import pytest

from convrepro.config import GROUPS, choices, compose_config, describe
from convrepro.errors import ConvReproError
from convrepro.paths import CONF
from convrepro.tables import list_tables, load_table

EVERY = [(group, name) for group in GROUPS for name in choices(group)]


@pytest.mark.parametrize(("group", "name"), EVERY, ids=[f"{g}={n}" for g, n in EVERY])
def test_every_choice_of_every_group_composes(group, name):
    cfg = compose_config([f"{group}={name}"])
    assert cfg[group]
    assert describe(group, name), "the first line of a config says what the choice is"


@pytest.mark.parametrize("name", list_tables())
def test_every_row_of_every_table_composes(name):
    table = load_table(name)
    for row in table.to_run:
        cfg = compose_config(table.overrides(row))
        assert cfg.recipe.epochs >= 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("conv.grup=2", ["conv=hetconv", "'grup'", "p", "arrangement", "where"]),
        ("conv=hetcon", ["hetcon", "did you mean hetconv", "standard"]),
        ("recipe.optimizer.lrr=1", ["'lrr'", "did you mean lr", "weight_decay"]),
        ("modle=resnet18", ["'modle'", "did you mean model"]),
        ("data=cifar", ["did you mean cifar10"]),
        ("budget=full", ["budget=full", "paper, proxy, smoke"]),
        ("epochs", ["'epochs'", "key=value"]),
        ("conv.p=[1,", ["not an override"]),
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
    assert len(list(CONF.rglob("*.yaml"))) <= 45
