"""`convrepro train -m`: Hydra's own multirun, with any launcher, over comma-separated overrides."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from convrepro.config import settle
from convrepro.errors import ConvReproError
from convrepro.paths import CONF


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
def _job(cfg: DictConfig) -> None:
    from convrepro.train import run

    try:
        settle(cfg)
        run(cfg, list(HydraConfig.get().overrides.task))
    except ConvReproError as error:
        print(f"convrepro: {error}", file=sys.stderr)
        sys.exit(2)


def sweep(overrides: Sequence[str]) -> int:
    """Run every combination of the comma-separated values in `overrides`; stops at the first that fails."""
    sys.argv = ["convrepro train", "-m", *overrides]
    _job()
    return 0
