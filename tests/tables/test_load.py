"""The committed tables: that they load, count, and meet what the papers claim."""

import subprocess
import sys
from fractions import Fraction

import pytest

from convrepro.complexity.rules import RULES
from convrepro.config.paths import CONF
from convrepro.errors import ConvReproError
from convrepro.tables import (
    Trained,
    judge,
    list_papers,
    list_tables,
    load_table,
    render_scoreboard,
)

pytestmark = pytest.mark.unit

TABLES = list_tables()


def hetconv_vgg(p: int | str | None, se: bool = False, pair: int | str | None = None) -> Fraction:
    """VGG-16 on CIFAR-10 in the paper's count, from its formula: Do^2 N (M K^2 + 1) times the HetConv ratio."""
    total, width, side, channels = Fraction(0), 3, 32, [64, 64, 0, 128, 128, 0, *[256] * 3, 0, *([512] * 3 + [0]) * 2]
    for n in channels:
        if not n:
            side //= 2
            continue
        part = Fraction(1 if width == 3 or p is None else n if p == "out" else p)
        if pair and width > 3:
            groups = width if pair == "depthwise" else pair
            total += side**2 * (Fraction(9 * width * width, groups) + width + width * n)
        else:
            total += side**2 * n * (width * 9 + 1) * (1 / part + (1 - 1 / part) / 9)
        total += Fraction(2 * n * n, 8) if se else 0
        width = n
    return total + 512 * 512 + 512 * 10


def table1_statics() -> dict[str, dict[str, Fraction]]:
    parts = {"p1": None, **{f"p{p}": p for p in (2, 4, 8, 16, 32, 64)}, "pc": "out"}
    statics = {row: {"macs": hetconv_vgg(p)} for row, p in parts.items()}
    statics |= {f"{row}_se": {"macs": hetconv_vgg(p, se=True)} for row, p in parts.items()}
    statics["gwc4_pwc"] = {"macs": hetconv_vgg(None, pair=4)}
    statics["dwc_pwc"] = {"macs": hetconv_vgg(None, pair="depthwise")}
    return statics


def test_committed_tables_are_found():
    assert {"hetconv/table1", "hetconv/resnet50", "deepshift/mnist_v1", "deepshift/mnist_v5"} <= set(TABLES)
    assert {"deepshift", "hetconv"} <= set(list_papers())


@pytest.mark.parametrize("name", TABLES)
def test_committed_table_keeps_the_rules(name):
    table = load_table(name)
    assert {m.count for m in table.metrics.values()} - {""} <= RULES.keys()
    for row in table.to_run:
        given = table.settings(row)
        assert given.keys() >= {"model", "data", "recipe", "conv"}, row.id
        assert all((CONF / group / f"{given[group]}.yaml").exists() for group in ("conv", "recipe")), row.id


@pytest.mark.parametrize("name", TABLES)
def test_the_paper_meets_its_own_claims(name):
    """A claim that its own published values contradict is a slip of ours in either, or the paper's, and then told."""
    from convrepro.tables import judge_claim

    table = load_table(name)
    failing = [claim.text for claim in table.claims if judge_claim(table, claim, {}, {}).paper == "fails"]
    assert failing == [claim.text for claim in table.claims if claim.contradicted]


def test_quotient_of_counts_gives_the_published_figures_of_table_1():
    """Every verified count of the paper but the two that it rounds where it cuts the others."""
    table, statics = load_table("hetconv/table1"), table1_statics()
    verdicts = {
        (row.id, name): judge(table, row, table.metrics[name], statics, {}).verdict
        for row in table.rows
        for name in ("macs", "reduction")
    }
    assert {k for k, v in verdicts.items() if v == "static-off"} == {("gwc4_pwc", "macs"), ("dwc_pwc", "macs")}
    assert sum(v == "static-ok" for v in verdicts.values()) == 8 + 9
    assert {v for (row, _), v in verdicts.items() if row.endswith("_se")} <= {"unverified", "-"}


def test_counts_of_a_row_that_is_another_tables():
    table = load_table("hetconv/table2")
    statics = {row: table1_statics()[row] for row in ("p1", "p16", "p32", "p64")}
    for row in table.rows:
        cells = [judge(table, row, table.metrics[name], statics, {}) for name in ("macs", "reduction")]
        assert {c.verdict for c in cells} <= ({"quoted", "-"} if row.quoted else {"static-ok", "-"}), row.id
    assert table.to_run == ()
    assert table.row("p16").overrides == load_table("hetconv/table1").row("p16").overrides


@pytest.mark.heavy
def test_listing_imports_no_torch():
    code = (
        "import sys, convrepro.evidence.store; from convrepro.tables import *; [load_table(n) for n in list_tables()]"
    )
    heavy = "print({'torch', 'timm', 'lightning', 'hydra', 'rich', 'omegaconf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_unknown_table_names_the_near_ones():
    with pytest.raises(ConvReproError, match=r"no table 'hetconv/tabel1'.*hetconv/table1"):
        load_table("hetconv/tabel1")


def test_scoreboard_of_table_1_without_runs():
    line = render_scoreboard([("1", [(load_table("hetconv/table1"), table1_statics(), {})])]).splitlines()[2]
    assert "17 ok, 2 off, 14 unverified, 2 not counted" in line
    assert "18 not run" in line
    assert "4 holds, 6 unknown" in line


def test_trained_metric_takes_its_own_name_by_default():
    metrics = load_table("hetconv/table5").metrics
    assert [m.run_metric for m in metrics.values() if isinstance(m, Trained)] == ["top1", "top5"]
