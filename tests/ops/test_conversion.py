"""Networks converted from trained ones: the finer an operator's knob, the smaller the error that it makes."""

import math

import pytest

from support.converted import assert_never_worse, error, error_by_layer

ANY = math.inf


def series(word: str, values: tuple[object, ...], **knobs: object) -> list[dict[str, object]]:
    """Settings that differ in one knob, the coarsest first."""
    return [{**knobs, word: value} for value in values]


@pytest.mark.parametrize(
    ("operator", "settings", "last"),
    [
        ("low_precision", series("bits", (2, 4, 8, 16), precision="fixed"), ANY),
        ("low_precision", series("activation_bits", (2, 4, 8, 16), precision="fixed", bits=16), ANY),
        ("low_precision", series("clusters", (2, 4, 16, 64, 256), precision="shared"), ANY),
        ("low_rank", series("rank", (1, 0.25, 0.5, 1.0), scheme="channel"), 1e-5),
        ("low_rank", series("energy", (0.1, 0.5, 0.9, 1.0), scheme="channel", rank=None), 1e-5),
        # of fewer ranks, an error is larger than the output, and chance
        ("low_rank", series("rank", (0.25, 0.5, 0.75, 1.0), scheme="spatial"), 1e-5),
        ("sparse", series("density", (0.05, 0.25, 0.5, 1.0), structure="unstructured"), 0),
        ("sparse", series("density", (0.0625, 0.25, 0.5, 1.0), structure="block"), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_finer_layers_make_no_larger_errors(operator: str, settings: list[dict[str, object]], last: float) -> None:
    errors = [error_by_layer("resnet8_cifar", operator, knobs) for knobs in settings]
    assert_never_worse(errors)
    assert errors[-1] <= last


@pytest.mark.parametrize(
    ("network", "operator", "settings", "last"),
    [
        ("resnet20_cifar", "low_precision", series("bits", (4, 8, 16), precision="fixed"), ANY),
        ("resnet20_cifar", "low_precision", series("clusters", (4, 16, 256), precision="shared"), ANY),
        ("resnet20_cifar", "low_rank", series("rank", (0.1, 0.5, 1.0), scheme="channel"), 1e-3),
        ("resnet20_cifar", "low_rank", series("rank", (0.1, 0.5, 1.0), scheme="spatial"), 1e-3),
        ("resnet20_cifar", "sparse", series("density", (0.125, 0.5, 1.0), structure="unstructured"), 0),
        ("resnet20_cifar", "sparse", series("density", (0.125, 0.5, 1.0), structure="block"), 0),
        ("vgg16_cifar", "low_precision", series("bits", (4, 8, 16), precision="fixed"), ANY),
        ("vgg16_cifar", "sparse", series("density", (0.125, 0.5, 1.0), structure="block"), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_finer_networks_make_no_larger_errors(
    network: str, operator: str, settings: list[dict[str, object]], last: float
) -> None:
    errors = [error(network, operator, knobs) for knobs in settings]
    assert_never_worse(errors)
    assert errors[-1] <= last
