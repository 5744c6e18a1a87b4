"""The command that writes networks to files for other programs: `export`."""

import argparse
from os.path import expanduser
from typing import Any


def add(verbs: Any) -> None:
    """Adds the verb of this module to an argument parser."""
    verb = verbs.add_parser("export", help="write a network for inference to a file, and check the file's output")
    verb.add_argument("overrides", nargs="*", help="overrides such as model=resnet18 conv=hetconv weights=CHECKPOINT")
    verb.add_argument(
        "--to",
        type=expanduser,
        required=True,
        metavar="FILE",
        help="FILE.onnx for ONNX, or FILE.pt2 for torch.export",
    )
    verb.set_defaults(execute=_export)


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    import torch

    from convrepro.config.compose import compose_config
    from convrepro.models.build import build_network
    from convrepro.models.export import TOLERANCE, check_target, export

    path = Path(arguments.to)
    check_target(path)
    cfg = compose_config(arguments.overrides)
    network, report = build_network(cfg)
    done = export(network, torch.zeros(1, cfg.data.channels, cfg.data.image_size, cfg.data.image_size), path)
    if report.weights:
        print(report.weights)
    print(done.fused.summary())
    if done.difference > TOLERANCE:
        print("the network rounds the inputs of layers; its output in float64 differs from that in float32 as well")
    print(f"{done.path}: {path.stat().st_size / 1e6:.2f} MB; largest difference {done.difference:.1e} of the output")
    return 0
