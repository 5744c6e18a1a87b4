"""Where the configuration and the papers' tables live: inside an installed wheel, or in the repository."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]
CONF = ROOT / "conf"
REPRODUCTIONS = ROOT / "reproductions"
