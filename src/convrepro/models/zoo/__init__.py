"""Networks that timm lacks. Importing this package registers them, so that `timm.create_model` can build them."""

from importlib import import_module

_FAMILIES = (
    "igcv1",
    "igcv2",
    "igcv3",
    "mnist",
    "mobilenet_v1",
    "mobilenet_v2_cifar",
    "one_conv",
    "resnet_cifar",
    "resnet_stride1x1",
    "se_vgg",
    "shufflenet_v1",
    "torchvision_models",
    "vgg_cifar",
)

MODELS = tuple(sorted(name for family in _FAMILIES for name in import_module(f"{__name__}.{family}").default_cfgs))
"""The names of the models that the zoo adds to timm."""
