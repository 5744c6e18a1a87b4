"""Submissions without a cluster: scripts, waves, arrays, sites, and what stops one before anything is queued."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convrepro.cli.main import main
from convrepro.cluster import slurm
from convrepro.cluster.manifest import Submission
from convrepro.cluster.scripts import SAFE, Shape, array_script, collect_script
from convrepro.cluster.site import Site, load_site, parse_flags
from convrepro.cluster.submission import arrange, remaining, submit
from convrepro.errors import ConvReproError
from convrepro.runs.plan import Job
from convrepro.runs.storage import write_json
from convrepro.training.runner import validate
from support import lab_table
from support.lab_table import no_slurm  # noqa: F401 a fixture

TWO_NODES = "[trainer.accelerator=gpu, trainer.devices=2, trainer.num_nodes=2]"
ROWS_OF_TWO_SHAPES = (lab_table.PLAIN, f"  - {{id: wide, label: Wide, overrides: {TWO_NODES}, published: {{}}}}\n")

pytestmark = pytest.mark.usefixtures("no_slurm")


def dry(jobs: list[Job], runs: Path, site: Site | None = None) -> str:
    told: list[str] = []
    submit(jobs, lab_table.request(jobs), site or load_site(()), runs, told.append, dry_run=True)
    return "\n".join(told)


# ---------------------------------------------------------------- dry run and scripts


def test_a_dry_run_prints_scripts_that_bash_can_read_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("SOME_VALUE", "of-the-environment")
    runs = tmp_path / "a folder, 100%" / "runs"
    table = lab_table.load(tmp_path / "tables")
    site = Site({"comment": 'a "b" c'}, ("export A='x y'",))
    told = dry(lab_table.jobs(table, runs), runs, site)
    scripts = re.split(r"^--- .*\n", told, flags=re.MULTILINE)[1:]
    assert len(scripts) == 3  # two waves, and the job that collects
    for text in scripts:
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert '#SBATCH --comment="a \\"b\\" c"' in text.splitlines()
        assert "export A='x y'" in text.splitlines()
    for line in ("--signal=SIGUSR1@90", "--requeue", "--open-mode=append", "--array=0-1", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}" in scripts[0].splitlines()
    assert "k" * 40 not in told
    assert "of-the-environment" not in told
    assert not runs.exists()


def test_rows_are_checked_once_for_all_seeds_and_for_each_value_of_a_sweep(tmp_path):
    hetconv = "[model=deepshift_mnist_conv, conv=hetconv]"
    table = lab_table.load(tmp_path / "tables", f"  - {{id: p, label: P, overrides: {hetconv}, published: {{}}}}\n")
    good, other, bad = (
        job
        for knobs in (["conv.p=2"], ["conv.p=5"], ["conv.p=3"])
        for job in lab_table.jobs(table, tmp_path / "runs", extra=(*lab_table.EXTRA, *knobs))[:1]
    )
    seeds = lab_table.jobs(table, tmp_path / "runs", extra=(*lab_table.EXTRA, "conv.p=2"))
    told: list[str] = []
    validate([good, other, *seeds], told.append)
    assert told == ["checked 0 of 2 rows", "checked 1 of 2 rows", ""]
    with pytest.raises(ConvReproError, match=r"lab/tiny, row p: .*p=3 must divide"):
        validate([good, bad], told.append)


def test_the_command_makes_a_dry_run_without_slurm(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["submit", "deepshift/mnist_v5", "--budget", "smoke", "--rows", "fc_q_pretrained", "--seeds", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--dry-run", "trainer=cpu", "--", "-p", "short", "--time=0:30:00", "--exclusive"])
    assert not stop.value.code
    told = capsys.readouterr().out
    assert "2 runs, 0 finished, 0 queued already, 2 to queue" in told  # with the row whose weights it needs
    assert told.count("#SBATCH --partition=short\n") == 3
    assert told.count("#SBATCH --time=0:30:00\n") == 3
    assert told.count("#SBATCH --exclusive\n") == 2  # not of the job that collects
    assert f"runs={tmp_path / 'runs'}" in told
    assert not (tmp_path / "runs").exists()


def test_flags_behind_two_dashes_are_refused_where_nothing_takes_them(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["status", "hetconv/table1", "--", "-p", "x"])
    assert stop.value.code == 2
    assert "status" in capsys.readouterr().err


def test_without_slurm_a_submission_ends_in_one_sentence(tmp_path):
    table = lab_table.load(tmp_path / "tables")
    jobs = lab_table.jobs(table, tmp_path / "runs")
    with pytest.raises(ConvReproError, match="squeue is not on this machine"):
        submit(jobs, lab_table.request(jobs), load_site(()), tmp_path / "runs", print, dry_run=False)
    assert not (tmp_path / "runs").exists()


def test_a_script_runs_each_run_of_its_part_of_the_manifest(tmp_path):
    """The script itself, executed by bash, with a srun that prints what it is given."""
    table = lab_table.load(tmp_path / "tables", lab_table.PLAIN)
    entries, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), 1)
    assert [array.first for array in arrays] == [0, 1]
    submission = Submission(tmp_path / "a b" / "1")
    (tmp_path / "bin" / "srun").write_text('#!/bin/bash\nwhile [ "$1" != task ]; do shift; done; printf "%s\\n" "$@"\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    text = array_script(submission, arrays[1], Site({}, python="python3"), table.name, tmp_path)
    done = subprocess.run(
        ["bash"], input=text, text=True, capture_output=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    )
    words = [
        "task",
        "python3",
        *SAFE.split(),
        "-m",
        "convrepro.cli",
        "task",
        str(submission.manifest),
        str(entries[1].index),
    ]
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (words, "", 0)


# ---------------------------------------------------------------- waves, arrays, shapes

PLAINS = ("plain0", "plain1", "plain2")
#: Rows and those whose weights they take.
FOLLOW = (("a", "plain2"), ("b", "plain0"), ("c", "plain2"), ("d", "a"), ("e", "c"), ("f", "c"))


def test_rows_that_start_from_others_come_in_a_later_wave(tmp_path):
    table = lab_table.load(
        tmp_path,
        lab_table.SHIFT,
        lab_table.PLAIN,
        lab_table.SHIFT.replace("shift,", "again,").replace("m: plain", "m: shift"),
    )
    entries, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), 1001)
    assert [(array.wave, array.first, array.count) for array in arrays] == [(0, 0, 2), (1, 2, 2), (2, 4, 2)]
    assert [entry.row for entry in entries] == ["plain", "plain", "shift", "shift", "again", "again"]
    assert entries[2].source == entries[0].folder
    assert entries[0].source is None


def test_each_task_follows_the_task_that_trains_its_weights(tmp_path):
    """Whatever order rows and seeds have, a task and its source have one index, and the first tasks have followers."""
    plain = [lab_table.PLAIN.replace("plain", f"plain{n}") for n in range(3)]
    shifts = [
        lab_table.SHIFT.replace("shift,", f"{name},").replace("m: plain", f"m: {source}") for name, source in FOLLOW
    ]
    table = lab_table.load(tmp_path, *shifts, *plain)
    for size in (1001, 4):
        entries, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), size)
        assert sorted(entry.row for entry in entries) == sorted([name for name, _ in FOLLOW] * 2 + list(PLAINS) * 2)
        assert [array.source is None for array in arrays] == [array.wave == 0 for array in arrays]
        for array in arrays:
            for n in range(array.count):
                if array.source is not None:
                    assert entries[array.first + n].source == entries[array.source + n].folder


def test_a_task_of_another_shape_than_its_neighbours_waits_for_the_whole_array(tmp_path):
    two = lab_table.SHIFT.replace("conv=shift", "conv=shift, trainer.devices=2").replace("shift,", "two,", 1)
    plain = [lab_table.PLAIN, lab_table.PLAIN.replace("plain", "other")]
    table = lab_table.load(tmp_path, *plain, two.replace("m: plain", "m: other"), lab_table.SHIFT)
    entries, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs", extra=("logger=none",))), 1001)
    found = {entries[array.first].row: array.source for array in arrays if array.wave == 1}
    assert sorted(map(str, found.values())) == ["0", "None"]


def test_a_row_whose_source_is_finished_starts_at_once(tmp_path):
    jobs = lab_table.jobs(lab_table.load(tmp_path), tmp_path / "runs")
    for job in jobs:
        if not job.source:
            write_json(job.folder / "result.json", lab_table.result(job))
    todo = remaining(jobs, tmp_path / "none", [])
    assert todo.finished == 2
    entries, arrays = arrange(todo, 1001)
    assert {entry.row for entry in entries} == {"shift"}
    assert [array.wave for array in arrays] == [0]


def test_a_row_whose_source_is_queued_waits_for_it(tmp_path):
    jobs = lab_table.jobs(lab_table.load(tmp_path), tmp_path / "runs")
    sources = [job for job in jobs if not job.source]
    earlier = lab_table.submitted(sources, tmp_path / "runs")
    queue = [
        slurm.Queued(f"7_{n}", "7", n, "PENDING", "Priority", earlier.folder / "runs-0.sh", 0)
        for n in range(len(sources))
    ]
    todo = remaining(jobs, earlier.folder.parent, queue)
    assert [job.row.id for job in todo.jobs] == ["shift", "shift"]
    _, arrays = arrange(todo, 1001)
    assert [array.wave for array in arrays] == [1]


def test_arrays_are_no_longer_than_the_cluster_allows(tmp_path):
    table = lab_table.load(tmp_path, *(lab_table.PLAIN.replace("plain", f"plain{n}") for n in range(4)))
    entries, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), 3)
    assert [(array.first, array.count) for array in arrays] == [(0, 3), (3, 3), (6, 2)]
    assert [entry.index for entry in entries] == list(range(8))


def test_nodes_and_processes_are_those_of_the_rows_trainer(tmp_path):
    table = lab_table.load(tmp_path, *ROWS_OF_TWO_SHAPES)
    _, arrays = arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), 1001)
    assert [(array.shape, array.count) for array in arrays] == [(Shape(1, 1, False), 2), (Shape(2, 2, True), 2)]
    submission = Submission(tmp_path / "1")
    one, two = (array_script(submission, array, Site({}), table.name, tmp_path).splitlines() for array in arrays)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --gpus-per-node=2"} <= set(two)
    assert not [line for line in one if "gpu" in line]
    typed = array_script(submission, arrays[1], Site({"gres": "gpu:a:2"}), table.name, tmp_path)
    assert "gpus-per-node" not in typed
    assert "gres" not in collect_script(submission, Site({"gres": "gpu:a:2"}), table.name, tmp_path)


def test_a_number_of_devices_that_is_left_open_is_refused(tmp_path):
    table = lab_table.load(tmp_path, lab_table.PLAIN.replace("[conv=standard]", "[trainer.devices=auto]"))
    with pytest.raises(ConvReproError, match=r"row plain: trainer\.devices=auto must be a whole number"):
        arrange(lab_table.left(lab_table.jobs(table, tmp_path / "runs")), 1001)


# ---------------------------------------------------------------- what stops a submission


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("[conv.grup=2]", "has no key 'grup'"),
        ("[model=resnet18, conv=hetconv, conv.p=3]", "p=3"),
        ("[model=resnet81]", "resnet81"),
        ("[recipe.batch_size=33, trainer.devices=2]", "must divide"),
    ],
)
def test_one_bad_row_stops_the_submission_with_its_name_and_reason(tmp_path, overrides, reason):
    bad = f"  - {{id: bad, label: Bad, overrides: {overrides}, published: {{}}}}\n"
    table = lab_table.load(tmp_path / "tables", lab_table.PLAIN, bad)
    with pytest.raises(ConvReproError, match=f"lab/tiny, row bad: .*{re.escape(reason)}"):
        dry(lab_table.jobs(table, tmp_path / "runs"), tmp_path / "runs")


def test_data_that_is_not_there_stops_the_submission(tmp_path):
    table = lab_table.load(tmp_path / "tables", lab_table.PLAIN)
    extra = (*lab_table.EXTRA, f"data_root={tmp_path / 'nowhere'}", "data.download=false")
    with pytest.raises(ConvReproError, match=r"row plain: .*nowhere"):
        dry(lab_table.jobs(table, tmp_path / "runs", "paper", extra), tmp_path / "runs")


def test_finished_runs_are_skipped_and_those_of_another_protocol_refused(tmp_path):
    jobs = lab_table.jobs(lab_table.load(tmp_path / "tables", lab_table.PLAIN), tmp_path / "runs")
    for job in jobs:
        write_json(job.folder / "result.json", lab_table.result(job))
    assert "nothing to queue" in dry(jobs, tmp_path / "runs")
    other = lab_table.result(jobs[0])
    write_json(jobs[0].folder / "result.json", other | {"config": other["config"] | {"model": "resnet18"}})
    with pytest.raises(ConvReproError, match=r"another protocol: model was resnet18 and is"):
        dry(jobs, tmp_path / "runs")


# ---------------------------------------------------------------- the site


def test_flags_win_over_variables_over_the_file(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(
        "sbatch: {partition: a, account: b, time: 24:00:00, exclusive: true, qos: z}\nsetup: [module load x]\n"
    )
    variables = {"CONVREPRO_SLURM_SITE": str(path), "CONVREPRO_SLURM_ACCOUNT": "c", "CONVREPRO_SLURM_PARTITION": "d"}
    variables |= {"CONVREPRO_SLURM_CPUS_PER_TASK": "4", "CONVREPRO_SLURM_QOS": "false"}
    site = load_site(["-p", "e"], variables)
    assert site.flags == {
        "partition": "e", "account": "c", "time": "24:00:00", "exclusive": None, "cpus-per-task": "4"
    }  # fmt: skip
    assert site.setup == ("module load x",)
    assert Path(site.python) == Path(sys.executable)
    assert load_site([], {**variables, "CONVREPRO_SLURM_PYTHON": "python"}).python == "python"


def test_the_example_of_a_site_is_one():
    example = Path(__file__).parents[2] / "slurm" / "site.example.yaml"
    site = load_site([], {"CONVREPRO_SLURM_SITE": str(example)})
    assert site.flags["time"] == "24:00:00"
    assert site.setup


def test_flags_may_be_written_as_sbatch_takes_them():
    assert parse_flags(["-pgpu", "-t", "1:00", "--mem", "8G", "--exclusive", "--nice=-5", "-c=2"]) == {
        "partition": "gpu", "time": "1:00", "mem": "8G", "exclusive": None, "nice": "-5", "cpus-per-task": "2"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("partition: gpu", "unknown key 'partition'; valid: sbatch, setup, python"),
        ("sbatch: [gpu]", "sbatch must be a mapping"),
        ("setup: module load x", "setup must be a list"),
        ("sbatch: {--partition: gpu}", "without dashes"),
        ("sbatch: {nodes: 2}", r"--nodes cannot be given: .*trainer\.num_nodes"),
        ('sbatch: {comment: "a\\nrm -r x"}', "line break"),
        ("[", "cannot be read as YAML"),
        ("setup: [export WANDB_API_KEY=abcdef]", "WANDB_API_KEY would be written"),
        ("setup: ['huggingface-cli login --token hf_abcdefghijklmnopqrstuvwxyz']", "would be written"),
        ("setup: ['export https_proxy=http://me:pass@proxy:1']", "password"),
        ("sbatch: {export: 'ALL,MY_TOKEN=abc'}", "MY_TOKEN would be written"),
        (f"sbatch: {{comment: {'0a' * 20}}}", "a key would be written"),
    ],
)
def test_a_site_file_that_breaks_a_rule_is_refused(tmp_path, content, reason):
    path = tmp_path / "site.yaml"
    path.write_text(content)
    with pytest.raises(ConvReproError, match=reason):
        load_site([], {"CONVREPRO_SLURM_SITE": str(path)})


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--array=0-3"], "--array=%8"),
        (["--signal=TERM@30"], "SIGUSR1@SECONDS"),
        (["--no-requeue"], "every task is requeued"),
        (["-N", "2"], "trainer.num_nodes"),
        (["gpu"], "'gpu' is not a flag"),
        (["-Z"], "'-Z' is not a flag"),
        (["--export=WANDB_API_KEY=abc"], "WANDB_API_KEY would be written"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, reason):
    with pytest.raises(ConvReproError, match=re.escape(reason)):
        load_site(flags, {})


def test_flags_that_may_be_are_taken():
    flags = ["--array=%4", "--signal=USR1@300", "--export=ALL,WANDB_API_KEY", "--mail-user=a@b.c"]
    assert set(load_site(flags, {"CONVREPRO_SLURM_SETUP": "export WANDB_API_KEY=$(cat ~/.key)"}).flags) == {
        "array", "signal", "export", "mail-user"
    }  # fmt: skip
