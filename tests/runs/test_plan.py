"""A run that names a table and a row is that row, or a variant that is named as one."""

import pytest

import convrepro.training.runner  # noqa: F401 (what it imports starts a process)
from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.config.overrides import value_of, without
from convrepro.errors import ConvReproError
from convrepro.runs.identity import former_digest
from convrepro.runs.plan import check_row, plan
from convrepro.tables import list_tables, load_table
from support import lab_table
from support.variants import identity, named

pytestmark = pytest.mark.unit

EXTRAS = (("trainer.precision=bf16-mixed", "logger=none"), ("recipe.batch_size=32",), ("data.verify=false",))
HEAVY = [pytest.param(extra, marks=pytest.mark.heavy) for extra in EXTRAS]


def checked(words: list[str], table) -> None:
    check_row(compose_config(words), table, words)


@pytest.mark.parametrize("extra", [(), *HEAVY], ids=lambda extra: " ".join(extra) or "as published")
def test_every_run_that_is_planned_passes_unchanged_and_none_under_the_name_of_another_row(tmp_path, extra):
    table = lab_table.load(tmp_path)
    for budget in ("paper", "proxy", "smoke"):
        jobs = plan(table, budget=budget, rows=(), seeds=(0, 1), extra=extra, runs=tmp_path)
        assert len(jobs) == 4
        for job in jobs:
            checked(job.overrides, table)
            other = "plain" if job.row.id == "shift" else "shift"
            with pytest.raises(ConvReproError, match=f"row={other} of lab/tiny|row {other} of lab/tiny starts"):
                checked([*without(job.overrides, "row"), f"row={other}"], table)
            with pytest.raises(ConvReproError, match=r"does not name this run: it has .*; write row="):
                checked([*job.overrides, "model=deepshift_mnist_conv"], table)


@pytest.mark.heavy
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_rows_of_every_table_pass_as_they_are_planned(tmp_path, every):
    for name in list_tables():
        table = load_table(name)
        if not table.to_run:
            continue
        jobs = plan(table, budget="paper", rows=(), seeds=table.seeds[:1], extra=(), runs=tmp_path)
        for job in jobs[::every]:
            checked(job.overrides, table)


def test_a_row_that_starts_from_another_takes_the_weights_of_that_row_alone(tmp_path):
    table = lab_table.load(tmp_path)
    (job,) = (j for j in lab_table.jobs(table, tmp_path) if j.row.id == "shift" and j.identity.seed == 1)
    right = value_of(job.overrides, "weights")
    plain = without(job.overrides, "weights")
    for wrong in ("x.ckpt", right.replace("seed1", "seed0"), right.replace("plain", "shift"), f"{right}.old"):
        with pytest.raises(ConvReproError, match=r"row shift of lab/tiny starts from .*plain/smoke-seed1/last\.ckpt"):
            checked([*plain, f"weights={wrong}"], table)
    with pytest.raises(ConvReproError, match="not from weights=null; leave table= and row= out"):
        checked(plain, table)
    with pytest.raises(
        ConvReproError, match=r"'weights=x.ckpt' has no effect on row shift, which starts from .* plain"
    ):
        lab_table.jobs(table, tmp_path, extra=("weights=x.ckpt",))
    alone = plan(table, budget="smoke", rows=["plain"], seeds=[0], extra=["weights=x.ckpt"], runs=tmp_path)
    checked(alone[0].overrides, table)


def test_a_variant_goes_by_its_own_digest_and_by_the_one_of_an_older_version(tmp_path):
    table = lab_table.load(tmp_path)
    former = f"plain+{former_digest(['recipe.batch_size=32'])}"
    (tmp_path / "lab/tiny" / former).mkdir(parents=True)
    (old,) = plan(table, budget="smoke", rows=["plain"], seeds=[0], extra=["recipe.batch_size=32"], runs=tmp_path)
    assert old.identity.row == former
    checked(old.overrides, table)
    with pytest.raises(ConvReproError, match=r"it has recipe.batch_size=16, the row \d+; write"):
        checked([*old.overrides, "recipe.batch_size=16"], table)
    plain = without(old.overrides, "recipe.batch_size")
    with pytest.raises(ConvReproError, match="it is the row itself; write row=plain, or leave table= and row= out"):
        checked(plain, table)


def test_the_sentence_says_what_to_type_and_that_is_accepted(tmp_path, capsys):
    words = ["model=deepshift_mnist_fc", "data=mnist", "recipe=deepshift_mnist_v5", "conv=shift", "seed=3"]
    table = load_table("deepshift/mnist_v5")
    with pytest.raises(ConvReproError, match="write row=") as error:
        checked([*words, "recipe.epochs=3", "table=deepshift/mnist_v5", "row=fc_q"], table)
    written = str(error.value).partition("write ")[2].split(",")[0]
    checked([*words, "recipe.epochs=3", "table=deepshift/mnist_v5", written], table)
    assert written in named([*words, "recipe.epochs=3"])
    assert identity([*words, "recipe.epochs=3"]).row == written.removeprefix("row=")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["table=hetconv/table1", "row=p4", "model=resnet18"], "row=p4 of hetconv/table1 does not name this run: it"),
        (["table=hetconv/table9", "row=p4"], "no table 'hetconv/table9'; did you mean hetconv/table"),
        (["table=hetconv/table1", "row=p5"], "hetconv/table1 has no row 'p5' to run; "),
        (["table=hetconv/table2", "row=p4"], "hetconv/table2 has no runs of its own"),
    ],
)
def test_train_rejects_a_row_that_the_run_is_not_before_it_looks_for_data(words, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *words, "data=cifar10", f"data_root={tmp_path / 'nowhere'}", "data.download=false"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert says in message
    assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["budget=smoke", "budget.name=mine", "seed=1", "row=plain", "table=lab/tiny"])
def test_what_a_plan_sets_itself_cannot_be_given(word, tmp_path):
    with pytest.raises(ConvReproError, match=f"{word} has no effect on a table's runs"):
        lab_table.jobs(lab_table.load(tmp_path), tmp_path, extra=(word,))
