"""Gradients of training images, by which filters are scored before a run removes some."""

from torch import nn
from torch.nn import functional as F

from convrepro.data import ImageData
from convrepro.models.filters import Gradients, evaluating

#: Training images whose gradients are summed, at least; all of them where there are fewer.
EXAMPLES = 1024


def saliency(data: ImageData) -> Gradients:
    """Returns a function that accumulates the gradients of the cross-entropy over training images in a network.

    The images are the first batches of the first epoch, the same on every device of a run and after an interruption.
    The network is in evaluation mode, so that statistics of batch norms stay what they are.
    """

    def accumulate(network: nn.Module) -> None:
        data.prepare_data()
        data.setup()
        seen = 0
        with evaluating(network):
            for images, labels in data.train_dataloader():
                F.cross_entropy(network(images), labels, reduction="sum").backward()
                seen += len(labels)
                if seen >= EXAMPLES:
                    break

    return accumulate
