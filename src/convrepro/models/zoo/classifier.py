"""Base classes and functions of the networks in the zoo: the methods that timm's tools call, and initialisation."""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.ops.init import init_weight_
from convrepro.ops.squeeze_excite import SqueezeExcite

Network = TypeVar("Network", bound=nn.Module)


class ImageClassifier(nn.Module, ABC):
    """A network that maps images (B, in_chans, H, W) to logits (B, num_classes).

    The constructor of a subclass builds the layers and calls `finish` last. Its `neck` maps the result of
    `forward_features` to (B, num_features).
    """

    neck: nn.Module
    linear: nn.Module

    def finish(self, num_features: int, num_classes: int, in_chans: int, drop_rate: float) -> None:
        """Adds dropout of `drop_rate` and the classifier, and initialises the network."""
        self.num_features = self.head_hidden_size = num_features
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)
        self.init_weights(self)

    def init_weights(self, module: nn.Module) -> None:
        """Draws the weights in `module`. The base class keeps those that PyTorch has drawn."""

    def get_classifier(self) -> nn.Module:
        """Returns the last layer, which is `nn.Identity` if the network has no classes."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one with `num_classes` outputs, or by `nn.Identity` for 0.

        Raises ConvReproError as `check_pooling` does.
        """
        check_pooling(self, global_pool)
        self.num_classes = num_classes
        some = next(self.parameters())
        self.linear = (
            nn.Linear(self.num_features, num_classes, device=some.device, dtype=some.dtype)
            if num_classes
            else nn.Identity()
        )
        self.init_weights(self.linear)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the features, which are the input of `neck`."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps features to logits, or with `pre_logits` to the input of the classifier, (B, num_features)."""
        x = self.head_drop(self.neck(x))
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class CifarClassifier(ImageClassifier):
    """An `ImageClassifier` with the initialisation of HetConv's CIFAR recipe.

    Convolutions are N(0, 2/fan_out) with their true fan, linear layers are N(0, 0.01^2), and biases are zero.
    """

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                taps = layer.kernel_size[0] * layer.kernel_size[1]
                fan_in, fan_out = (n // layer.groups * taps for n in (layer.in_channels, layer.out_channels))
                init_weight_(layer.weight, "fan_out", fan_in=fan_in, fan_out=fan_out)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)
            else:
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_pooling(network: nn.Module, global_pool: str | None) -> None:
    """Raises ConvReproError for a `global_pool` other than "avg", because the pooling belongs to the network."""
    if global_pool not in (None, "avg"):
        raise ConvReproError(f"global_pool={global_pool!r}: {type(network).__name__} has its own pooling; valid: avg")


def average_pool() -> nn.Sequential:
    """Returns layers that map feature maps (B, C, H, W) to their means (B, C)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def squeeze_excite(channels: int, reduction: int | None) -> nn.Module:
    """Returns squeeze-and-excitation with `reduction`, or `nn.Identity` for None."""
    return nn.Identity() if reduction is None else SqueezeExcite(channels, reduction)


def cifar_cfg(first_conv: str) -> dict[str, object]:
    """Returns timm's configuration of a network for CIFAR-10, with the statistics of its training images."""
    return {
        "input_size": (3, 32, 32),
        "num_classes": 10,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": "linear",
    }


def imagenet_cfg(first_conv: str, classifier: str = "linear") -> dict[str, object]:
    """Returns timm's configuration of a network for ImageNet, with the statistics of its training images."""
    return {
        "input_size": (3, 224, 224),
        "num_classes": 1000,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875,
        "first_conv": first_conv,
        "classifier": classifier,
    }


def build(network: type[Network], name: str, pretrained: bool, **kwargs: Any) -> Network:
    """Builds the `network` that timm registers as `name`. Raises ConvReproError for `pretrained=True`."""
    if pretrained:
        raise ConvReproError(f"pretrained=True: no weights for {name} are published with this project; valid: False")
    return build_model_with_cfg(network, name, pretrained=False, **kwargs)
