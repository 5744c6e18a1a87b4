"""The tiers of the suite: which test belongs to which, what the fast one may not do, and who runs what.

- `unit`: the tests of a file that says `pytestmark = pytest.mark.unit`, but for those marked `heavy` or `exhaustive`.
  They start no process and train no network, and all of them together take less than two minutes.
- no mark: everything else that is always run.
- `cluster`: the tests of a file that starts Slurm.
- `exhaustive`: a mechanism that other tests see at work, on more networks, rows or moments. `pytest -m exhaustive` runs
  them; without `-m` they are left out.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

#: What Python's audit hooks hear when a process is started.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "os.exec"}
#: What Lightning's trainer is asked to do.
LOOPS = ("fit", "validate", "test", "predict")
#: Tests of `convrepro.testing` that take seconds; they have no mark, which outside packages would have to declare.
SLOW = ("test_compiles_without_graph_breaks",)
#: Groups of files that share something expensive, by the end of their paths: what one process runs, one after the
#: other. The groups come first, in this order, those that take longest before the others. After them come the files
#: with a fixture of their own for all their tests, each a group too, so that one process makes it and not every one.
GROUPS = {
    "a cluster for the chaos": ("cluster/test_chaos.py",),
    "a cluster for tables": ("cluster/test_array.py", "cluster/test_paper.py"),
    "a cluster for all else": (
        "cluster/test_ddp.py",
        "cluster/test_local.py",
        "cluster/test_search.py",
        "cluster/test_sweep.py",
        "cluster/test_wheel.py",
    ),
    "servers that give no answer": ("tracking/test_deadlines.py", "tracking/test_sync.py", "tracking/test_logger.py"),
    "a table that is trained once": ("report/test_dashboard.py",),
    "a page of all tables": ("report/test_html.py",),
    "a comparison": ("cli/test_compare.py",),
    "a search": ("search/test_search.py",),
    "an audit of all tables": ("report/test_papers.py",),
}
ROOT = Path(__file__).parents[2]


def group(nodeid: str) -> str:
    """The group of a test; its own id where it is in none."""
    file = nodeid.split("::")[0]
    found = next((name for name, files in GROUPS.items() if file.endswith(files)), nodeid)
    return file if found == nodeid and _shares(ROOT / file) else found


@cache
def _shares(path: Path) -> bool:
    """Whether the tests of a file share a fixture."""
    return path.is_file() and 'scope="module"' in path.read_text()


def rank(item: pytest.Item) -> int:
    """Tests of a lower rank start earlier where several processes share them: short ones are left for the end."""
    places, own = {name: place for place, name in enumerate(GROUPS)}, group(item.nodeid)
    single = own == item.nodeid
    return places.get(own, len(places) + single + 2 * bool(item.get_closest_marker("unit")))


def is_left_out(path: Path, marks: str) -> bool:
    """Whether `pytest -m marks` needs nothing of a file: it is not read in vain, with the libraries that it imports."""
    return marks == "unit" and path.name.startswith("test_") and "pytest.mark.unit" not in path.read_text()


def assign(items: list[pytest.Item]) -> None:
    """Hand the mark `unit` of a file on to its tests that are neither `heavy` nor `exhaustive`."""
    files = {item: item.getparent(pytest.Module) for item in items}
    light = {file for file in files.values() if file and any(mark.name == "unit" for mark in file.own_markers)}
    for file in light:
        file.own_markers = [mark for mark in file.own_markers if mark.name != "unit"]
    for item, file in files.items():
        slow = item.get_closest_marker("heavy") or item.get_closest_marker("exhaustive")
        if file in light and not slow and getattr(item, "originalname", "") not in SLOW:
            item.add_marker("unit")


class Guard:
    """An audit hook of this process that fails the running test when it starts a process, while it is switched on."""

    def __init__(self) -> None:
        self._installed = False
        self._on = False
        self._seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in STARTS:
            self._refuse(f"{event} {arguments[0] if arguments else ''}")

    @contextmanager
    def watching(self, item: pytest.Item) -> Iterator[None]:
        """Within the block a unit test fails that starts a process or a loop of Lightning, also where the code under
        test hides it. Other tests may do what they like.

        Lightning is not imported for this: where no file of the session has imported it, its loops are not watched.
        """
        if not item.get_closest_marker("unit"):
            yield
            return
        if not self._installed:
            sys.addaudithook(self)  # for as long as this process lives
            self._installed = True
        self._seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            if trainer := sys.modules.get("lightning.pytorch.trainer.trainer"):
                for loop in LOOPS:
                    patch.setattr(trainer.Trainer, loop, lambda *_, loop=loop, **__: self._refuse(f"Trainer.{loop}"))
            self._on = True
            try:
                yield
            finally:
                self._on = False
        if self._seen:
            self._fail(self._seen[0])

    def _refuse(self, what: str) -> None:
        self._seen.append(what)
        self._fail(what)

    def _fail(self, what: str) -> None:
        pytest.fail(f"a unit test starts no process and trains no network, but this one did: {what}; mark it heavy")


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process of xdist one test after the other, those of a group all to one.

    xdist's own marks for this (`xdist_group`) have no effect under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

        def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
            super().mark_test_complete(node, item_index, duration)
            work, scope = self.assigned_work[node], group(self.registered_collections[node][item_index])
            if all(work[scope].values()):
                del work[scope]  # or it is counted again after each of thousands of tests

    config.option.loadscopereorder = False  # the order is that of `rank`
    return Grouped(config, log)
