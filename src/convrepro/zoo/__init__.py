"""Networks that timm lacks; importing this package registers them, so that `timm.create_model` builds them."""

from convrepro.zoo import mnist, mobilenet_cifar, resnet_cifar, vgg_cifar

MODELS = tuple(
    sorted(name for family in (mnist, mobilenet_cifar, resnet_cifar, vgg_cifar) for name in family.default_cfgs)
)
"""The names that the zoo adds to timm's."""
