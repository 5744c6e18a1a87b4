"""AlexNet, SqueezeNet and GoogLeNet, which timm lacks, as torchvision builds and initialises them.

The keys of the state dicts are torchvision's, so that the networks can load its published checkpoints. A first
convolution for a number of channels other than three, and a classifier that is set later, have PyTorch's default
initialisation.
"""

from abc import abstractmethod
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
import torchvision.models
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import build, check_pooling, imagenet_cfg
from convrepro.ops import conv_arguments


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns a checkpoint of torchvision without GoogLeNet's auxiliary classifiers, which this network lacks."""
    return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}


class _TimmMethods(nn.Module):
    """The methods that timm's tools call, for a network of torchvision.

    The network maps images (B, in_chans, H, W) to logits (B, num_classes).
    """

    first_conv: str
    classifier_name: str
    num_features: int

    def _set_up(self, num_classes: int, in_chans: int) -> None:
        self.num_classes, self.in_chans = num_classes, in_chans
        self.head_hidden_size = self.num_features
        if in_chans != 3:
            conv = self.get_submodule(self.first_conv)
            assert isinstance(conv, nn.Conv2d)
            arguments = conv_arguments(conv)
            self.set_submodule(self.first_conv, nn.Conv2d(**arguments | {"in_channels": in_chans}))
        if num_classes == 0:
            self.reset_classifier(0)

    def get_classifier(self) -> nn.Module:
        """Returns the module that maps the result of `forward_head(..., pre_logits=True)` to logits."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one with `num_classes` outputs, or removes it for 0.

        Raises ConvReproError as `check_pooling` does.
        """
        check_pooling(self, global_pool)
        self.num_classes = num_classes
        some = next(self.parameters())
        classifier = self._fresh_classifier(num_classes).to(some.device, some.dtype).train(self.training)
        self.set_submodule(self.classifier_name, classifier)

    def _fresh_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images to feature maps."""

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps feature maps to logits, or with `pre_logits` to the input of the classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class AlexNet(_TimmMethods, torchvision.models.AlexNet):
    """Krizhevsky: "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997)."""

    features: nn.Module
    avgpool: nn.Module
    classifier: nn.Sequential
    first_conv = "features.0"
    classifier_name = "classifier.6"
    num_features = 4096

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__(num_classes or 1, drop_rate)
        self._set_up(num_classes, in_chans)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 256, H/32, W/32); 224x224 becomes 6x6."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps feature maps to logits, or with `pre_logits` to the input of the classifier, (B, 4096)."""
        *hidden, classifier = self.classifier
        x = torch.flatten(self.avgpool(x), 1)
        for layer in hidden:
            x = layer(x)
        return x if pre_logits else classifier(x)


class SqueezeNet(_TimmMethods, torchvision.models.SqueezeNet):
    """Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: "SqueezeNet" (arXiv 1602.07360).

    The classifier is a 1x1 convolution with ReLU, averaged over the positions.
    """

    features: nn.Module
    classifier: nn.Sequential
    first_conv = "features.0"
    classifier_name = "classifier"
    num_features = 512

    def __init__(self, version: str, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__(version, num_classes or 1, drop_rate)
        self.drop_rate = drop_rate
        self.classifier.append(nn.Flatten())
        self._set_up(num_classes, in_chans)

    def _fresh_classifier(self, num_classes: int) -> nn.Module:
        logits = (nn.Conv2d(self.num_features, num_classes, 1), nn.ReLU(inplace=True)) if num_classes else ()
        return nn.Sequential(nn.Dropout(self.drop_rate), *logits, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 512, H/16, W/16); 224x224 becomes 13x13."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps feature maps to logits, or with `pre_logits` to the input of the classifier, which are the maps."""
        return x if pre_logits else self.classifier(x)


class GoogLeNet(_TimmMethods, torchvision.models.GoogLeNet):
    """Szegedy et al.: "Going Deeper with Convolutions" (arXiv 1409.4842), with batch norm, and 3x3 instead of 5x5.

    torchvision's published checkpoint was trained on images normalised by 1/2 and 1/2. `transform_input` converts
    images that are normalised by ImageNet's mean and standard deviation to this form.
    """

    avgpool: nn.Module
    dropout: nn.Module
    fc: nn.Module
    _transform_input: Callable[[Tensor], Tensor]
    first_conv = "conv1.conv"
    classifier_name = "fc"
    num_features = 1024

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2, transform_input: bool = False
    ) -> None:
        if transform_input and in_chans != 3:
            raise ConvReproError(
                f"transform_input={transform_input} is for in_chans=3, not in_chans={in_chans}; valid: False"
            )
        super().__init__(num_classes or 1, False, transform_input, init_weights=True, dropout=drop_rate)
        self._set_up(num_classes, in_chans)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 1024, H/32, W/32)."""
        x = self._transform_input(x)
        for layer in takewhile(lambda module: module is not self.avgpool, self.children()):
            x = layer(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps feature maps to logits, or with `pre_logits` to the input of the classifier, (B, 1024)."""
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        return x if pre_logits else self.fc(x)


default_cfgs = generate_default_cfgs(
    {
        "alexnet": imagenet_cfg(AlexNet.first_conv, AlexNet.classifier_name),
        "googlenet": imagenet_cfg(GoogLeNet.first_conv, GoogLeNet.classifier_name),
        "squeezenet1_0": imagenet_cfg(SqueezeNet.first_conv, SqueezeNet.classifier_name),
        "squeezenet1_1": imagenet_cfg(SqueezeNet.first_conv, SqueezeNet.classifier_name),
    }
)


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet in one column: 61,100,840 parameters."""
    return build(AlexNet, "alexnet", pretrained, **kwargs)


@register_model
def googlenet(pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
    """GoogLeNet without auxiliary classifiers: 6,624,904 parameters."""
    return build(GoogLeNet, "googlenet", pretrained, **kwargs)


@register_model
def squeezenet1_0(pretrained: bool = False, **kwargs: Any) -> SqueezeNet:
    """SqueezeNet 1.0: 1,248,424 parameters."""
    return build(SqueezeNet, "squeezenet1_0", pretrained, version="1_0", **kwargs)


@register_model
def squeezenet1_1(pretrained: bool = False, **kwargs: Any) -> SqueezeNet:
    """SqueezeNet 1.1: 1,235,496 parameters."""
    return build(SqueezeNet, "squeezenet1_1", pretrained, version="1_1", **kwargs)
