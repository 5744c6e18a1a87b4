"""Where the configuration and the papers' tables live: inside an installed wheel, or in the repository.

CONVREPRO_TABLES names another folder of tables, `<paper>/<table>.yaml`, whose evidence then goes there too.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]
CONF = ROOT / "conf"
VARIABLE = "CONVREPRO_TABLES"
REPRODUCTIONS = Path(os.path.expanduser(os.environ.get(VARIABLE) or ROOT / "reproductions")).absolute()


def table_names(root: Path = REPRODUCTIONS) -> list[str]:
    """Names of all tables under `root`, sorted: `paper/table`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in root.glob("*/*.yaml"))
