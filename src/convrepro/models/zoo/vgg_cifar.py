"""VGG-16 for CIFAR-10, as HetConv trains it (arXiv 1903.04120, table 1).

Simonyan, Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv 1409.1556),
configuration D, with batch norm, and linear layers 512-512-10 instead of its three linear layers.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.models.zoo.classifier import CifarClassifier, average_pool, build, cifar_cfg, squeeze_excite

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VggCifar(CifarClassifier):
    """13 convolutions 3x3 with bias, each with batch norm and ReLU, in five stages that end in a 2x2 max pool.

    Optional squeeze-and-excitation follows each ReLU of a convolution. `width` multiplies the number of filters of each
    convolution. For an image of 32x32 the average pool has one position, for a larger image it has more.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        se_reduction: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for stage in STAGES:
            for filters in (max(1, round(filters * width)) for filters in stage):
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
                if se_reduction is not None:
                    layers.append(squeeze_excite(filters, se_reduction))
                channels = filters
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.neck = nn.Sequential(*average_pool(), nn.Linear(channels, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True))
        self.finish(512, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 512, H/32, W/32)."""
        return self.features(x)


default_cfgs = generate_default_cfgs({"vgg16_cifar": cifar_cfg("features.0")})


@register_model
def vgg16_cifar(pretrained: bool = False, **kwargs: Any) -> VggCifar:
    """VGG-16: 14,982,474 parameters without batch norm, 313,463,808 MACs."""
    return build(VggCifar, "vgg16_cifar", pretrained, **kwargs)
