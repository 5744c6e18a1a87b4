"""Mixup and CutMix are what their papers define, the same for one seed and step, and another for any other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convrepro.training.mixing import Mixing

pytestmark = pytest.mark.unit

CLASSES = 5


def drawn(size: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return torch.rand(size, 3, side, side, generator=generator), torch.arange(size) % CLASSES


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_each_image_is_mixed_with_its_opposite_and_its_target_in_the_same_share(size, mixup, cutmix):
    images, labels = drawn(size)
    kinds = set()
    shares = []
    for step in range(40):
        mixed, targets = Mixing(mixup, cutmix, CLASSES).mix(images.clone(), labels, 3, step)
        own, other = F.one_hot(labels, CLASSES).double(), F.one_hot(labels.flip(0), CLASSES).double()
        apart = (own != other).any(1)
        share = float(targets[apart][0].double() @ own[apart][0]) if apart.any() else None
        if share is not None:
            shares.append(share)
            torch.testing.assert_close(targets.double(), share * own + (1 - share) * other)
            if torch.allclose(mixed, share * images + (1 - share) * images.flip(0), atol=1e-6):
                kinds.add("mixup")
            else:
                kinds.add("cutmix")
                taken = (mixed != images).any(1)
                assert torch.equal(torch.where(taken[:, None], images.flip(0), images), mixed)
                box = taken[apart][0].nonzero()
                sides = box.max(0).values - box.min(0).values + 1 if len(box) else torch.zeros(2)
                assert int(sides.prod()) == len(box) == round((1 - share) * 64), "one rectangle, of the share's area"
        torch.testing.assert_close(targets.sum(1), torch.ones(size))
    if shares:
        assert kinds >= {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}
        assert len(set(shares)) > 5
    if size == 64 and mixup == 1.0:
        assert abs(np.mean(shares) - 0.5) < 0.15, "Beta(1, 1) is uniform"


def test_a_mixture_is_a_function_of_seed_and_step_and_leaves_the_global_state():
    images, labels = drawn(8)

    def mix(seed: int, step: int) -> torch.Tensor:
        return Mixing(0.4, 1.0, CLASSES).mix(images.clone(), labels, seed, step)[0]

    np.random.seed(7)
    before = np.random.get_state()[1].tolist()
    assert torch.equal(mix(2**32 - 1, 10**7), mix(2**32 - 1, 10**7))
    assert np.random.get_state()[1].tolist() == before
    others = [mix(seed, step) for seed in range(4) for step in range(4)]
    assert sum(torch.equal(one, two) for one in others for two in others) == len(others)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses_with_their_smoothing(smoothing):
    images, labels = drawn(4)
    logits = torch.randn(4, CLASSES)
    _, targets = Mixing(1.0, 0.0, CLASSES).mix(images, labels, 0, 1)
    share = float(targets[0, 0])
    losses = [F.cross_entropy(logits, y, label_smoothing=smoothing) for y in (labels, labels.flip(0))]
    expected = share * losses[0] + (1 - share) * losses[1]
    torch.testing.assert_close(F.cross_entropy(logits, targets, label_smoothing=smoothing), expected)
