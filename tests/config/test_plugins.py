"""Plugins and folders of a user's own: found, and where they are wrong named in one sentence."""

import sys

import pytest

from convrepro.config import plugins
from convrepro.config.compose import choices, compose_config
from convrepro.config.plugins import describe
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError
from convrepro.models.build import build_network
from support.outside import own_registry

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_place(monkeypatch, tmp_path):
    for variable in (plugins.PLUGINS, plugins.CONFIG_DIR):
        monkeypatch.setenv(variable, "")
    monkeypatch.syspath_prepend(tmp_path)
    with own_registry():
        yield
    plugins._declared.cache_clear()
    plugins._load_installed.cache_clear()


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        (
            "my-ops",
            None,
            "plugin 'my-ops' is not the name of a module; write it as in an import, such as my_p",
        ),
        (
            "nowhere_a.ops",
            None,
            "No module named 'nowhere_a'; install it, or put the folder that it is in on PYTH",
        ),
        (
            "broken_a",
            "import nowhere_b",
            "plugin broken_a cannot be imported: ModuleNotFoundError: No module named 'now",
        ),
        ("broken_b", "1 / 0", "plugin broken_b cannot be imported: ZeroDivisionError: division by zero"),
        ("broken_c", "def", "plugin broken_c cannot be imported: SyntaxError: invalid syntax"),
        ("broken_d", "raise SystemExit(3)", "plugin broken_d cannot be imported: SystemExit: 3"),
        (
            "taken_a",
            "from convrepro import register_operator\nfrom convrepro.ops import GroupPointwise\n"
            "@register_operator('shift')\nclass Mine(GroupPointwise): pass",
            "plugin taken_a: operator name 'shift' is taken by convrepro.ops.shift.ShiftConv2d; choose another",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_sentence(module, text, says, tmp_path, monkeypatch):
    if text:
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setenv(plugins.PLUGINS, module)
    for use in (lambda: compose_config([]), lambda: choices("conv")):
        with pytest.raises(ConvReproError) as error:
            use()
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_no_configuration_names_a_plugin(tmp_path):
    (tmp_path / "spy_a.py").write_text("raise RuntimeError('imported')")
    for text in ("model=spy_a:build", "+plugin=spy_a", "conv=spy_a"):
        with pytest.raises(ConvReproError):
            build_network(compose_config([text]))
    assert "spy_a" not in sys.modules


def installed(tmp_path, value: str) -> None:
    """A package as pip leaves it: a module beside a folder with its entry points."""
    info = tmp_path / "outside_b-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-b\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.ENTRY_POINTS}]\nmine = {value}\n")


def test_the_entry_point_of_an_installed_package_is_loaded(tmp_path):
    (tmp_path / "outside_b.py").write_text(
        "from convrepro import register_operator\nfrom convrepro.ops import GroupPointwise\n"
        "@register_operator('mine_b')\nclass Mine(GroupPointwise):\n    'By entry point.'\n"
    )
    installed(tmp_path, "outside_b:Mine")
    plugins._declared.cache_clear()
    plugins._load_installed.cache_clear()
    assert compose_config(["conv=mine_b"]).conv.knobs == {"num_groups": 4}
    assert plugins.provides("outside_b.models")


def test_a_broken_entry_point_names_its_package(tmp_path):
    installed(tmp_path, "nowhere_c.ops")
    plugins._declared.cache_clear()
    plugins._load_installed.cache_clear()
    with pytest.raises(ConvReproError, match=r"entry point mine = nowhere_c.ops of the installed package outside-b c"):
        compose_config([])


def test_files_of_a_users_folder_are_choices(tmp_path, monkeypatch):
    folder = tmp_path / "it's mine, = so"
    for group, text in (("conv", "# Sparse.\n{name: hetconv, where: all, p: 2}"), ("recipe", "# Short.\n")):
        (folder / group).mkdir(parents=True)
        (folder / group / "own_a.yaml").write_text(text)
    (folder / "recipe" / "own_a.yaml").write_text("defaults: [default]\nepochs: 7\n")
    monkeypatch.setenv(plugins.CONFIG_DIR, str(folder))
    cfg = compose_config(["conv=own_a", "recipe=own_a", "conv.p=4"])
    assert (cfg.conv.name, cfg.conv.where, cfg.conv.knobs, cfg.recipe.epochs) == ("hetconv", "all", {"p": 4}, 7)
    assert describe("conv", "own_a") == "Sparse."
    assert scientific(cfg)["conv"]["p"] == 4
    assert plugins.words() == ["--config-dir", str(folder)]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "is not a folder"),
        (["hetconv.yaml"], "has no configuration; it needs a file such as conv/my_operator.yaml"),
        (
            ["conv/hetconv.yaml"],
            "conv/hetconv.yaml has the name of a file of convrepro, which would be read",
        ),
    ],
)
def test_a_folder_that_would_not_be_read_is_one_sentence(files, says, tmp_path, monkeypatch):
    folder = tmp_path / "conf"
    for file in files or ():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("name: hetconv")
    monkeypatch.setenv(plugins.CONFIG_DIR, str(folder))
    with pytest.raises(ConvReproError, match=says):
        compose_config([])


MINE = """from convrepro import register_operator
from convrepro.ops import GroupPointwise

@register_operator("mine_d")
class Mine(GroupPointwise):
    "Of a package of two files."
"""


def test_the_code_of_the_plugins_that_a_network_consists_of_has_a_digest(tmp_path, monkeypatch):
    package = tmp_path / "package_d"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ops.py").write_text(MINE)
    monkeypatch.setenv(plugins.PLUGINS, "package_d.ops,outside_ops.operators")
    plugins.load()
    (package / "data.txt").write_text("is no code")
    before = plugins.code("resnet18", ["mine_d", "hetconv"])
    assert list(before) == ["package_d"]
    assert before["package_d"]["version"] is None
    assert plugins.code("outside_ops.models:two_stages", ["mine_d"]).keys() == {"outside_ops", "package_d"}
    assert plugins.code("torchvision:resnet18", ["shift"]) == {}
    assert plugins.code("resnet18", ["mine_d"]) == before
    (package / "kernel.py").write_text("GAIN = 1")
    assert plugins.code("resnet18", ["mine_d"]) != before


def test_the_version_of_an_installed_plugin_is_known(tmp_path, monkeypatch):
    (tmp_path / "outside_b.py").write_text(MINE.replace("mine_d", "mine_e"))
    installed(tmp_path, "outside_b")
    (tmp_path / "outside_b-1.0.dist-info" / "top_level.txt").write_text("outside_b")
    monkeypatch.delitem(sys.modules, "outside_b", raising=False)
    plugins._declared.cache_clear()
    plugins._load_installed.cache_clear()
    assert plugins.code("resnet18", ["mine_e"] if "mine_e" in choices("conv") else [])["outside_b"]["version"] == "1.0"
