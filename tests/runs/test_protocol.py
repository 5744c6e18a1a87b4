"""A setting that is added to the schema changes nothing for results that were made before it."""

import pytest

from convrepro.config.compose import choices, compose_config
from convrepro.runs.protocol import Protocol, scientific

pytestmark = pytest.mark.unit

#: Settings that came after the first results, each with a value of its own.
LATER = {"clip_grad": 0.5, "ema": 0.99, "mixup": 0.2, "cutmix": 0.5}


def without(config: dict) -> dict:
    """A configuration as a version without these settings recorded it."""
    return config | {"recipe": {key: value for key, value in config["recipe"].items() if key not in LATER}}


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_a_result_from_before_is_of_the_same_protocol_until_a_later_setting_is_used(recipe):
    words = [f"recipe={recipe}"]
    now = compose_config(words)
    before = without(now.model_dump())
    protocol = Protocol(scientific(now))
    assert "recipe" in before
    assert protocol.digest == Protocol(scientific(before)).digest
    assert protocol.difference(before, None) is None
    assert protocol.settings["recipe"] == without(protocol.settings)["recipe"], "so that no digest has changed"
    digests = {protocol.digest}
    for key, value in LATER.items():
        other = Protocol(scientific(compose_config([*words, f"recipe.{key}={value}"])))
        digests.add(other.digest)
        assert other.difference(before, None) == f"recipe.{key} was null and is {value}"
    assert len(digests) == 1 + len(LATER)
