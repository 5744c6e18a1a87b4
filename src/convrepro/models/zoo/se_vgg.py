"""VGG-16 with batch norm and squeeze-and-excitation, the network of SENet's table 2 (arXiv 1709.01507).

Hu, Shen, Sun add a block after the non-linearity of each of the 13 convolutions (section 3.3).
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vgg import VGG, cfgs
from torch import nn

from convrepro.models.zoo.classifier import build, imagenet_cfg, squeeze_excite


class SEVGG(VGG):
    """timm's VGG with squeeze-and-excitation after each activation of a convolution, in one `nn.Sequential` with it.

    Raises ValueError for a reduction that does not divide the channels.
    """

    def __init__(self, cfg: list[int | str], se_reduction: int = 16, **kwargs: Any) -> None:
        super().__init__(cfg, **kwargs)
        channels = 0
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
            elif isinstance(layer, nn.ReLU):
                self.features[index] = nn.Sequential(layer, squeeze_excite(channels, se_reduction))


default_cfgs = generate_default_cfgs({"se_vgg16_bn": imagenet_cfg("features.0", "head.fc")})


@register_model
def se_vgg16_bn(pretrained: bool = False, **kwargs: Any) -> SEVGG:
    """SE-VGG-16: 15,470,490,624 MACs, 138,596,784 parameters."""
    return build(SEVGG, "se_vgg16_bn", pretrained, cfg=cfgs["vgg16"], norm_layer=nn.BatchNorm2d, **kwargs)
