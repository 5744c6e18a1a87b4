"""The two small MNIST networks of DeepShift (arXiv 1905.13298): "Simple FC" and "Simple Conv"."""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.models.zoo.classifier import ImageClassifier, build


class MnistFc(ImageClassifier):
    """Linear layers 784-512-512-num_classes, with ReLU and dropout after both hidden layers, for images of 28x28."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_chans * 28 * 28, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
        )
        self.neck = nn.Identity()
        self.finish(512, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, 28, 28) to features (B, 512)."""
        return self.features(x)


class MnistConv(ImageClassifier):
    """5x5 convolutions to 20 and 50 channels, each with ReLU and a 2x2 max pool, and linear layers 800-500-num_classes.

    ReLU follows the first linear layer.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 20, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(50 * 4 * 4, 500), nn.ReLU(inplace=True))
        self.finish(500, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, 28, 28) to feature maps (B, 50, 4, 4)."""
        return self.features(x)


def _mnist_cfg(first_conv: str | None) -> dict[str, object]:
    return {
        "input_size": (1, 28, 28),
        "num_classes": 10,
        "mean": (0.1307,),
        "std": (0.3081,),
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": "linear",
    }


default_cfgs = generate_default_cfgs(
    {"deepshift_mnist_fc": _mnist_cfg(None), "deepshift_mnist_conv": _mnist_cfg("features.0")}
)


@register_model
def deepshift_mnist_fc(pretrained: bool = False, **kwargs: Any) -> MnistFc:
    """Three linear layers: 669,706 parameters."""
    return build(MnistFc, "deepshift_mnist_fc", pretrained, **kwargs)


@register_model
def deepshift_mnist_conv(pretrained: bool = False, **kwargs: Any) -> MnistConv:
    """Two convolutions and two linear layers: 431,080 parameters."""
    return build(MnistConv, "deepshift_mnist_conv", pretrained, **kwargs)
