"""A batch of one image is rejected before a run exactly where the run would fail at it."""

import itertools

import pytest
import torch
from torch.utils.data import TensorDataset

from convrepro.config.compose import compose_config
from convrepro.data.loader import BatchLoader, smallest_batch
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from convrepro.training.data import image_data
from convrepro.training.rehearsal import rehearse_batch
from convrepro.training.run import check, run
from support.small_runs import TINY

pytestmark = pytest.mark.unit

WORDS = ["model=resnet10t", "recipe.epochs=1", *TINY]  # its last maps are one pixel of the 28
REASON = r"Expected more than 1 value per channel .*; take another recipe\.batch_size or budget\.train_examples$"


def test_the_smallest_batch_is_that_of_the_loader():
    for examples, size, devices in itertools.product((1, 2, 5, 8, 9, 64, 65), (1, 2, 4, 8, 100), (1, 2, 3)):
        source = TensorDataset(torch.zeros(examples))
        shares = [BatchLoader(source, size, 0, rank, devices).order(0).split(size) for rank in range(devices)]
        assert {min(map(len, batches)) for batches in shares} == {smallest_batch(examples, size, devices)}


@pytest.mark.parametrize(
    ("words", "fails"),
    [
        (["budget.train_examples=65", "recipe.batch_size=32"], True),
        (["budget.train_examples=64", "recipe.batch_size=1"], True),
        (["budget.train_examples=1", "recipe.batch_size=32"], True),
        (["budget.train_examples=null", "recipe.batch_size=5999"], True),
        (["budget.train_examples=65", "recipe.batch_size=64", "trainer.accumulate=2"], True),
        (["budget.train_examples=66", "recipe.batch_size=64", "trainer.devices=2"], True),
        (["budget.train_examples=65", "recipe.batch_size=64", "trainer.devices=2"], True),
        (["budget.train_examples=67", "recipe.batch_size=64", "trainer.devices=2"], False),
        (["budget.train_examples=66", "recipe.batch_size=32"], False),
        (["budget.train_examples=65", "recipe.batch_size=32", "model=resnet20_cifar"], False),
        (["budget.train_examples=65", "recipe.batch_size=32", "model=deepshift_mnist_fc"], False),
        (["budget.train_examples=65", "recipe.batch_size=32", "data=cifar10", "budget.sample=true"], True),
    ],
)
def test_one_image_is_rejected_where_batch_norm_would_have_one_value(words, fails):
    cfg = compose_config([*WORDS, *words])
    network, _ = build_network(cfg)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ConvReproError, match=rf"^recipe\.batch_size=\d+ leaves a batch of one image .*{REASON}"):
            rehearse_batch(network, cfg, image_data(cfg))
    else:
        rehearse_batch(network, cfg, image_data(cfg))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_run_and_a_table_reject_it_before_anything_is_trained(tmp_path):
    words = [*WORDS, "budget.train_examples=65", "recipe.batch_size=32", f"runs={tmp_path}"]
    for refuse in (check, lambda cfg: run(cfg, words, lambda line: None)):
        with pytest.raises(ConvReproError, match=REASON):
            refuse(compose_config(words))
    assert not list(tmp_path.rglob("*.ckpt"))
