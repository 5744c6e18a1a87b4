"""What a shell may do to a command: pipes that close, full disks, small character sets, folders that are gone."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

import convrepro.training.runner  # noqa: F401 (what it imports starts a process)
from convrepro.cli.main import main
from convrepro.evidence.speed_suite import suite
from convrepro.report.papers import paper_tables
from support.command import CONVREPRO, Python

pytestmark = pytest.mark.unit

COMMAND = (sys.executable, "-m", "convrepro.cli")
LONG = "x" * 300


def answered(words: list[str], capsys) -> str:
    """The one sentence, of at most 3 lines, with which a command that ends with 2 answers."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr()
    assert stop.value.code == 2, (words, said)
    assert said.err.startswith("convrepro: "), (words, said)
    assert "Traceback" not in said.err
    assert len(said.err) < 1000, (words, said.err)
    assert len((said.out + said.err).splitlines()) <= 3, (words, said)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said.err), (words, said.err)
    return said.err


@pytest.mark.heavy
def test_outputs_that_end_early_or_cannot_be_written_or_lack_letters(tmp_path):
    show = ["show", "hetconv/table1"]
    gone = tmp_path / "gone"
    gone.mkdir()
    with open("/dev/full", "w") as full:
        started = {
            "full": Python([*CONVREPRO, *show], stdout=full, stderr=subprocess.PIPE, text=True),
            "closed": subprocess.Popen(
                ["bash", "-c", f"{' '.join(COMMAND)} list models | head -1; exit ${{PIPESTATUS[0]}}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ),
            "without": subprocess.Popen(
                ["bash", "-c", f"{' '.join([*COMMAND, *show])} >&- 2>&-"], stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            ),
            "ascii": Python(
                [*CONVREPRO, *show], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONIOENCODING": "ascii"},
            ),
            "deleted": subprocess.Popen(
                ["bash", "-c", f"rmdir {gone}; {' '.join(COMMAND)} train --cfg"], cwd=gone, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            ),
        }  # fmt: skip
    ends = {name: (*process.communicate(timeout=300), process.returncode) for name, process in started.items()}
    assert ends["full"][1:] == ("convrepro: the output cannot be used: No space left on device\n", 2)
    assert ends["closed"][1:] == ("", 0)
    assert len(ends["closed"][0].splitlines()) == 1
    assert ends["without"][2] == 0
    assert "\\u0394" in ends["ascii"][0]
    assert ends["ascii"][1:] == ("", 0)
    assert ends["deleted"][1:] == (
        "convrepro: the folder that this shell is in does not exist any more; cd to one that does\n", 2,
    )  # fmt: skip


@pytest.mark.heavy
def test_an_interrupt_during_the_imports_ends_with_130_and_no_traceback():
    """From when Python itself has started, which is when the folder of this package is looked at."""
    first = """import signal, sys
from convrepro.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

class Told:
    def find_spec(self, name, *_):
        if name == "convrepro.cli.command":
            print("here", flush=True)

sys.meta_path.insert(0, Told())
main(sys.argv[1:])
"""
    words = ["count", "model=resnet18"]
    for pause in (0.0, 0.3, 1.0, 1.3):
        command = [sys.executable, "-c", first, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "here\n"
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert errors == "convrepro: interrupted; the same command continues from the last checkpoint\n"


@pytest.mark.parametrize(
    "words",
    [
        ["train", f"model={LONG}"],
        ["train", f"conv={LONG}"],
        ["train", f"table={LONG}", "row=x"],
        ["train", "table=hetconv/table1", f"row={LONG}"],
        ["train", "data=cifar10", f"data_root=/{LONG}"],
        ["train", "data=cifar10", f"data_root={LONG}", "data.download=false"],
        ["train", f"runs={LONG}"],
        ["train", f"weights={LONG}"],
        ["train", LONG],
        ["show", LONG],
        ["show", f"hetconv/{LONG}"],
        ["run", "hetconv/table1", "--rows", LONG],
        ["run", LONG],
        ["run", "hetconv/table1", "--seeds", LONG],
        ["run", "hetconv/table1", "--budget", LONG],
        ["count", LONG],
        ["count", f"model={LONG}"],
        ["collect", LONG],
        ["report", LONG],
        ["dashboard", LONG],
        ["dashboard", f"{LONG}/{LONG}"],
        ["sync", LONG],
        ["cancel", LONG],
        ["status", LONG],
        ["bench", LONG],
        ["bench", "all", "--only", LONG],
        ["coverage", "--convs", LONG],
        ["coverage", "--models", LONG],
        ["export", "--to", f"{LONG}.onnx"],
        ["report", "hetconv/table1", "--html", f"{LONG}.html"],
        [LONG],
        ["list", LONG],
        ["show", "hetconv/table1", LONG],
        ["submit", "hetconv/table1", f"runs=/{LONG}"],
        ["task", LONG, "0"],
    ],
    ids=lambda words: " ".join(word.replace(LONG, "LONG") for word in words),
)
def test_a_name_of_300_characters_is_answered_in_a_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convrepro.cluster.slurm.queue", lambda: [])
    monkeypatch.setattr("convrepro.cluster.slurm.max_array_size", lambda: 1001)
    monkeypatch.setenv("CONVREPRO_SLURM_SITE", "")
    monkeypatch.setattr("convrepro.evidence.speed.where_and_how", lambda setting: {})
    answered(words, capsys)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("verb", ["show", "run", "submit", "collect", "sync", "count", "bench", "status", "dashboard"])
def test_an_unknown_table_is_answered_with_the_nearest_and_the_command_that_lists_all(verb, capsys, monkeypatch):
    monkeypatch.setattr("convrepro.evidence.speed.where_and_how", lambda setting: {})
    assert "did you mean hetconv/table1" in (near := answered([verb, "hetconv/tabel1"], capsys))
    assert "`convrepro list` lists all" in near
    assert "`convrepro list` lists all" in (far := answered([verb, "zzzz/0000"], capsys))
    assert len(far) < 200


@pytest.mark.parametrize("verb", ["show", "count"])
def test_a_paper_stands_for_its_tables(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "lecture", "lecture/se_overhead"])
    assert stop.value.code == 0
    said = re.findall(r"^(lecture/\w+): ", capsys.readouterr().out, re.MULTILINE)
    assert said == [table.name for table in paper_tables("lecture")]


NUMBERS = ("٣", "-1", "1.5", "1e3", "0x1", "1_0", "three", "nan", " 1", "9" * 20, "²", "")


@pytest.mark.parametrize("number", [n for n in NUMBERS if n])
def test_numbers_of_options_are_ascii_digits(number, capsys, monkeypatch):
    monkeypatch.setattr("convrepro.evidence.speed.where_and_how", lambda setting: {})
    for verb in ("run", "submit", "status", "resubmit"):
        assert "--seeds" in answered([verb, "hetconv/table1", f"--seeds={number}"], capsys)
    for option in ("--batch-size", "--threads", "--rounds"):
        assert option in answered(["bench", "hetconv/table1", f"{option}={number}"], capsys)
    if number != "1.5":
        assert "--watch" in answered(["status", "hetconv/table1", f"--watch={number}"], capsys)
    answered(["task", "manifest.jsonl", number], capsys)
    answered(["train", f"seed={number or 'x'}", "model=nothing"], capsys)


def test_only_what_is_in_the_suite_can_be_measured(capsys, monkeypatch):
    monkeypatch.setattr("convrepro.evidence.speed.where_and_how", lambda setting: {})
    said = answered(["bench", "all", "--only", "zzzz"], capsys)
    assert all(pair.group in said for pair in suite())


@pytest.mark.parametrize(
    "word", ["a\x1b[31mb", "a\nb", "a\x00b", "model=a\x07", "x\u202ey", "data_root=/a\tb", "\x9b1"]
)
def test_control_characters_are_shown_and_refused(word, capsys):
    for words in (["show", word], ["train", word], ["run", "hetconv/table1", word], [word], ["report", "--html", word]):
        assert "has a control character" in answered(words, capsys)


def test_the_users_folder_stands_for_the_tilde_in_every_path(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = [
        ["train", "data=cifar10", "data_root=~/data", "data.download=false"],
        ["train", "data=cifar10", "data.root=~/data", "data.download=false"],
        ["train", "weights=~/net.ckpt", "train=false"],
        ["export", "--to", "~/nowhere/net.onnx"],
        ["report", "hetconv/table1", "--html", "~/nowhere/page.html"],
        ["task", "~/manifest.jsonl", "0"],
        ["collect", "hetconv/table1", "--runs", "~/nowhere"],
        ["sync", "hetconv/table1", "--runs=~/nowhere"],
        ["dashboard", "hetconv/table1", "--runs=~/nowhere"],
    ]
    for line in words:
        said = answered(line, capsys)
        assert str(tmp_path) in said, said
        assert "~" not in said, said
    assert "~no-such-user" in answered(["train", "weights=~no-such-user/net.ckpt", "train=false"], capsys)
    from convrepro.cli.command import parse

    (tmp_path / "r").mkdir()
    for line in (
        ["collect", "x/y", "--runs", "~/r"],
        ["sync", "x/y", "--runs", "~/r"],
        ["dashboard", "x", "--runs=~/r"],
    ):
        assert parse(line).runs == tmp_path / "r"
    assert parse(["bench", "all", "--json=~/r"]).json == f"{tmp_path}/r"
    assert parse(["coverage", "--out=~/r"]).out == f"{tmp_path}/r"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["conv.p=four", "--rows=p4"], "row p4: conv.p=four must be a whole number or 'out'"),
        (["model=nothing"], "model 'nothing' is neither in timm nor in the zoo"),
        (["recipe.optimizer.name=sdg"], "sdg"),
        (["data.download=false", "data_root=nowhere"], "nowhere"),
        (["recipe.epochs=0"], "recipe.epochs=0 must be at least 1"),
        (["trainer.devices=2", "trainer.strategy=ddp", "--rows=p4"], "the trainer asks for 2 processes"),
    ],
)
def test_a_dry_run_checks_what_a_run_checks(words, says, capsys, tmp_path):
    for dry in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main(["run", "hetconv/table1", *words, *dry, f"runs={tmp_path}"])
        assert stop.value.code == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
