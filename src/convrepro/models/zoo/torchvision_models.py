"""AlexNet, SqueezeNet and GoogLeNet, which timm lacks, as torchvision builds and initialises them.

The keys of the state dicts are torchvision's, so that its published checkpoints can be loaded. A first convolution for
other than three channels, and a classifier put in later, have PyTorch's own initialisation.
"""

from itertools import takewhile

import torch
import torchvision.models
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import build, imagenet_cfg


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of torchvision's without GoogLeNet's auxiliary classifiers, which this one lacks."""
    return {key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2."))}


class _TimmMethods(nn.Module):
    """What timm's tools call, for a network of torchvision; images (B, in_chans, H, W) to logits (B, num_classes)."""

    first_conv: str
    classifier_name: str
    num_features: int

    def _set_up(self, num_classes: int, in_chans: int) -> None:
        self.num_classes, self.in_chans = num_classes, in_chans
        self.head_hidden_size = self.num_features
        if in_chans != 3:
            conv = self.get_submodule(self.first_conv)
            shape = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
            self.set_submodule(self.first_conv, nn.Conv2d(in_chans, *shape, bias=conv.bias is not None))
        if num_classes == 0:
            self.reset_classifier(0)

    def get_classifier(self) -> nn.Module:
        """What makes logits of `forward_head(..., pre_logits=True)`."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier of `num_classes` in place, or none for 0.

        Raises ConvReproError for a `global_pool` other than "avg": the pooling belongs to the network.
        """
        if global_pool not in (None, "avg"):
            raise ConvReproError(f"global_pool={global_pool!r}: {type(self).__name__} has its own pooling; valid: avg")
        self.num_classes = num_classes
        some = next(self.parameters())
        classifier = self._fresh_classifier(num_classes).to(some.device, some.dtype).train(self.training)
        self.set_submodule(self.classifier_name, classifier)

    def _fresh_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class AlexNet(_TimmMethods, torchvision.models.AlexNet):
    """Krizhevsky: "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997)."""

    first_conv = "features.0"
    classifier_name = "classifier.6"
    num_features = 4096

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.5) -> None:
        super().__init__(num_classes or 1, drop_rate)
        self._set_up(num_classes, in_chans)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to feature maps (B, 256, H/32, W/32); of 224x224 to 6x6."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits, or to what the classifier sees, (B, 4096)."""
        *hidden, classifier = self.classifier
        x = torch.flatten(self.avgpool(x), 1)
        for layer in hidden:
            x = layer(x)
        return x if pre_logits else classifier(x)


class SqueezeNet(_TimmMethods, torchvision.models.SqueezeNet):
    """Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: "SqueezeNet" (arXiv 1602.07360).

    The classifier is a 1x1 convolution with ReLU, averaged over the positions.
    """

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
        """Images (B, in_chans, H, W) to feature maps (B, 512, H/16, W/16); of 224x224 to 13x13."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits; what the classifier sees are the maps themselves."""
        return x if pre_logits else self.classifier(x)


class GoogLeNet(_TimmMethods, torchvision.models.GoogLeNet):
    """Szegedy et al.: "Going Deeper with Convolutions" (arXiv 1409.4842), with batch norm, 3x3 in place of 5x5.

    `transform_input` turns images that are normalised by ImageNet's mean and standard deviation into such by 1/2 and
    1/2, on which torchvision's published checkpoint was trained.
    """

    first_conv = "conv1.conv"
    classifier_name = "fc"
    num_features = 1024

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.2, transform_input: bool = False
    ) -> None:
        if transform_input and in_chans != 3:
            raise ConvReproError(f"transform_input={transform_input} is for in_chans=3, not in_chans={in_chans}")
        super().__init__(num_classes or 1, False, transform_input, init_weights=True, dropout=drop_rate)
        self._set_up(num_classes, in_chans)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to feature maps (B, 1024, H/32, W/32)."""
        x = self._transform_input(x)
        for layer in takewhile(lambda module: module is not self.avgpool, self.children()):
            x = layer(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits, or to what the classifier sees, (B, 1024)."""
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
def alexnet(pretrained: bool = False, **kwargs: object) -> AlexNet:
    """AlexNet in one column: 61,100,840 parameters."""
    return build(AlexNet, "alexnet", pretrained, **kwargs)


@register_model
def googlenet(pretrained: bool = False, **kwargs: object) -> GoogLeNet:
    """GoogLeNet without auxiliary classifiers: 6,624,904 parameters."""
    return build(GoogLeNet, "googlenet", pretrained, **kwargs)


@register_model
def squeezenet1_0(pretrained: bool = False, **kwargs: object) -> SqueezeNet:
    """SqueezeNet 1.0: 1,248,424 parameters."""
    return build(SqueezeNet, "squeezenet1_0", pretrained, version="1_0", **kwargs)


@register_model
def squeezenet1_1(pretrained: bool = False, **kwargs: object) -> SqueezeNet:
    """SqueezeNet 1.1: 1,235,496 parameters."""
    return build(SqueezeNet, "squeezenet1_1", pretrained, version="1_1", **kwargs)
