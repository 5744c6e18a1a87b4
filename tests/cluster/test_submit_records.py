"""What a submission leaves on the disk, and what is told from it: manifests, tasks, status, gathering. No cluster."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from convrepro.cli.main import main
from convrepro.cluster import slurm, task
from convrepro.cluster.gather import gather
from convrepro.cluster.manifest import Submission, next_number, read_manifest, submissions
from convrepro.cluster.status import render, survey
from convrepro.cluster.submission import live_runs
from convrepro.errors import ConvReproError
from convrepro.evidence.store import load_evidence
from convrepro.runs.folder import record_error
from convrepro.runs.plan import Job
from convrepro.runs.storage import write_json
from convrepro.tables import load_table
from support import lab_table
from support.lab_table import no_slurm  # noqa: F401 a fixture

pytestmark = pytest.mark.usefixtures("no_slurm")


def jobs_of(tmp_path: Path, budget: str) -> list[Job]:
    """In the order of the manifest: plain 0 and 1, shift 0 and 1."""
    return sorted(
        lab_table.jobs(lab_table.load(tmp_path / "tables"), tmp_path / "runs", budget), key=lambda job: job.row.id
    )


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    return jobs_of(tmp_path, "smoke")


@pytest.fixture
def submission(tmp_path, jobs) -> Submission:
    return lab_table.submitted(jobs, tmp_path / "runs")


def rewrite(submission: Submission, line: int, **changed) -> None:
    """Change keys of one line of the manifest; None takes a key out."""
    lines = [json.loads(text) for text in submission.manifest.read_text().splitlines()]
    lines[line] = {key: value for key, value in {**lines[line], **changed}.items() if value is not ...}
    submission.manifest.write_text("".join(json.dumps(values) + "\n" for values in lines))


# ---------------------------------------------------------------- manifests


def test_a_manifest_comes_back_as_it_was_written(submission, jobs):
    entries = read_manifest(submission.manifest)
    assert [entry.folder for entry in entries] == [str(job.folder) for job in jobs]
    assert [entry.run_id for entry in entries] == [job.identity.run_id for job in jobs]
    assert entries[1].overrides == tuple(jobs[1].overrides)
    assert submissions(submission.folder.parent) == [submission]
    assert submission.request == lab_table.request(jobs)
    assert next_number(submission.folder.parent) == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"shell": "rm"}, "no key `shell`"),
        ({"seed": ...}, "`seed` is missing"),
        ({"seed": "0"}, "seed='0' must be a whole number"),
        ({"seed": True}, "seed=true must be a whole number"),
        ({"overrides": "model=x"}, "overrides=model=x must be a list"),
        ({"overrides": ["a=1", 2]}, "overrides[1]=2 must be text"),
        ({"index": 7}, "index 7 must be 1"),
        ({"dirty": "no"}, "dirty=no must be true or false or null"),
    ],
)
def test_a_manifest_with_a_wrong_line_is_refused(submission, changed, reason):
    rewrite(submission, 1, **changed)
    with pytest.raises(ConvReproError, match="line 2: ") as error:
        read_manifest(submission.manifest)
    assert reason in str(error.value)


@pytest.mark.parametrize("runs", [["plain", 0], [["plain"]], [["plain", "0"]], "plain"])
def test_a_request_with_a_wrong_value_is_refused(submission, runs):
    path = submission.folder / "request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "runs": runs}))
    with pytest.raises(ConvReproError, match=r"runs(\[0\])?(\[1\])?[=\` ]"):
        _ = submission.request


def test_a_manifest_that_is_torn_is_refused(submission):
    text = submission.manifest.read_text()
    submission.manifest.write_text(text[: len(text) // 2])
    with pytest.raises(ConvReproError, match="this is not JSON"):
        read_manifest(submission.manifest)


# ---------------------------------------------------------------- one task


def run_task(submission: Submission, index: int, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["task", str(submission.manifest), str(index)])
    return stop.value.code, capsys.readouterr().err


def test_a_manifest_cannot_have_python_executed(submission, tmp_path, capsys):
    trace = tmp_path / "trace"
    call = [f"+model_args.x={{_target_: os.system, command: touch {trace}}}", "+hydra.x._target_=os.abort"]
    rewrite(submission, 0, overrides=[*read_manifest(submission.manifest)[0].overrides, *call])
    code, told = run_task(submission, 0, capsys)
    assert code == 2
    assert told.startswith("convrepro: ")
    assert not trace.exists()


def test_a_line_whose_overrides_are_those_of_another_run_is_refused(submission, jobs, capsys):
    rewrite(submission, 0, overrides=jobs[1].overrides)
    code, told = run_task(submission, 0, capsys)
    assert code == 2
    assert str(jobs[1].folder) in told
    assert not jobs[1].folder.exists()


def test_a_run_whose_source_has_no_result_fails_with_one_sentence(submission, jobs, capsys):
    index = next(n for n, job in enumerate(jobs) if job.source)
    code, told = run_task(submission, index, capsys)
    assert code == 2
    reason = f"lab/tiny/shift/0 starts from the weights of row plain, which has no result in {jobs[index].source}"
    assert told == f"convrepro: {reason}\n"
    assert (jobs[index].folder / "error.txt").read_text() == f"{reason}\n"


def test_an_old_reason_is_gone_when_a_task_starts(submission, jobs, capsys):
    record_error(jobs[0].folder, ConvReproError("of yesterday"))
    rewrite(submission, 0, overrides=[*jobs[0].overrides, "conv.grup=2"])
    run_task(submission, 0, capsys)
    assert "grup" in (jobs[0].folder / "error.txt").read_text()
    assert "yesterday" not in (jobs[0].folder / "error.txt").read_text()


def test_an_index_that_is_none_is_refused(submission, capsys):
    code, told = run_task(submission, 99, capsys)
    assert code == 2
    assert "has no run 99; its 4 runs are numbered from 0" in told


def test_it_is_counted_how_often_a_run_got_no_farther(tmp_path):
    ends = [0, 0, 5, 5, 3, 5, 9, 9, 9, 9]
    assert [task.fruitless(tmp_path / "ends", step, "by SIGKILL") for step in ends] == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]


# ---------------------------------------------------------------- status


def queued(submission: Submission, position: int, state: str = "RUNNING", reason: str = "None", requeued: int = 0):
    return slurm.Queued(f"7_{position}", "7", position, state, reason, submission.folder / "runs-0.sh", requeued)


def progress(run: Job, /, **changed) -> None:
    values = {"pid": 5, "host": "n1", "job": "7_0", "restarts": 0, "epoch": 11, "epochs": 160, "step": 4700}
    values |= {"images_per_second": 2140.0, "left_seconds": 4805, "updated": datetime.now(timezone.utc).isoformat()}
    write_json(run.folder / "progress.json", values | changed)


def told(jobs: list[Job], submission: Submission, queue: list[slurm.Queued] | None) -> list[str]:
    return [str(state) for state in survey(jobs, [submission], queue).values()]


def test_status_tells_every_state(jobs, submission):
    write_json(jobs[0].folder / "result.json", lab_table.result(jobs[0], 93.94))
    progress(jobs[1], job="7_1", restarts=2)
    record_error(jobs[2].folder, ValueError("the loss\nis odd"))
    queue = [queued(submission, 1, requeued=2), queued(submission, 3, "PENDING", "Priority", 1)]
    assert told(jobs, submission, queue) == [
        "done 93.94",
        "running 12/160, 2.1k/s, 1:20:05 left, requeued 2x",
        "failed",
        "pending Priority, requeued 1x",
    ]
    assert survey(jobs, [submission], queue)["shift", 0].reason == "ValueError: the loss is odd"


def test_a_run_that_left_the_queue_without_a_word_is_lost(jobs, submission):
    progress(jobs[0], restarts=1)
    submission.log("runs-0", 0).write_text("epoch 1\nsrun: error: n1: task 0: Killed\n\n")
    state = survey(jobs, [submission], [])["plain", 0]
    assert (state.kind, state.requeued) == ("lost", 1)
    assert "Killed" in state.reason
    assert str(submission.log("runs-0", 0)) in state.reason


def test_what_the_last_attempt_told_is_not_taken_for_this_one(jobs, submission):
    progress(jobs[0], restarts=0)
    assert told(jobs, submission, [queued(submission, 0, requeued=1)])[0] == "starting requeued 1x"


@pytest.mark.parametrize("reason", ["launch failed requeued held", "JobHeldUser"])
def test_a_run_that_is_held_is_told_with_what_frees_it(jobs, submission, reason):
    state = survey(jobs, [submission], [queued(submission, 0, "PENDING", reason, 1)])["plain", 0]
    assert str(state) == "held requeued 1x"
    assert state.why == f"held: {reason}; `scontrol release 7_0` frees it"


def test_a_task_that_says_nothing_for_long_is_shown_as_silent(jobs, submission):
    progress(jobs[0], updated=(datetime.now(timezone.utc) - timedelta(minutes=25)).isoformat())
    assert "silent for 25 min" in told(jobs, submission, [queued(submission, 0)])[0]


def test_without_slurm_the_folders_tell_what_they_can(jobs, submission):
    progress(jobs[0])
    record_error(jobs[1].folder, ConvReproError("no data"))
    assert told(jobs, submission, None) == ["started 12/160, 2.1k/s, 1:20:05 left", "failed", "missing", "missing"]


def test_a_run_that_somebody_trains_by_hand_is_not_lost(jobs, submission):
    progress(jobs[0], job=None)
    assert (
        survey(jobs, [submission], [])["plain", 0].why
        == "started: pid 5 on n1, last update " + json.loads((jobs[0].folder / "progress.json").read_text())["updated"]
    )


def test_the_queue_of_other_tables_is_not_this_ones(jobs, submission, tmp_path):
    other = replace(queued(submission, 0), script=tmp_path / "elsewhere" / "runs-0.sh")
    collecting = replace(queued(submission, 0), script=submission.folder / "collect.sh", position=None)
    assert live_runs([submission], [other, collecting]) == {}


def test_the_status_command_needs_neither_slurm_nor_the_words_of_the_submission(jobs, submission, tmp_path):
    """In a process of its own: it must not load torch either."""
    write_json(jobs[0].folder / "result.json", lab_table.result(jobs[0], 93.94))
    record_error(jobs[1].folder, ConvReproError("no data"))
    code = (
        "import sys\nfrom convrepro.cli.main import main\n"
        f"try:\n    main(['status', 'lab/tiny', 'runs={tmp_path / 'runs'}'])\nexcept SystemExit as stop:\n"
        "    assert not stop.code\nassert not {'torch', 'lightning', 'timm', 'wandb'} & set(sys.modules)\n"
    )
    environment = {"CONVREPRO_TABLES": str(tmp_path / "tables"), "PATH": str(tmp_path / "bin")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lab/tiny, budget smoke: submission 1" in done.stdout
    assert "done 93.94" in done.stdout
    assert "4 runs: 1 done, 2 missing, 1 failed" in done.stdout
    assert "plain, seed 1: failed: no data" in done.stdout


def test_a_text_in_brackets_is_shown_as_it_is(jobs, submission, capsys):
    from rich.console import Console

    record_error(jobs[0].folder, ConvReproError("[red]shape [3, 4][/nothing]"))
    Console(width=160).print(render([], survey(jobs, [submission], None)))
    assert "[red]shape [3, 4][/nothing]" in capsys.readouterr().out


# ---------------------------------------------------------------- gathering


def test_gathering_shows_results_and_names_what_is_missing(tmp_path, jobs, submission):
    write_json(jobs[0].folder / "result.json", lab_table.result(jobs[0], 93.94))
    record_error(jobs[1].folder, ConvReproError("no data"))
    lines: list[str] = []
    assert gather(submission.manifest, lines.append, tmp_path / "tables") == 1
    text = "\n".join(lines)
    assert "93.94" in text
    assert "no result: plain, seed 1: failed: no data" in text
    assert text.count("no result: shift, seed") == 2
    assert not list((tmp_path / "tables").rglob("results"))


def test_gathering_at_the_papers_budget_collects_evidence_and_tells_what_it_refuses(tmp_path):
    jobs = jobs_of(tmp_path, "paper")
    submission = lab_table.submitted(jobs, tmp_path / "runs")
    for job in jobs:
        write_json(job.folder / "result.json", lab_table.result(job))
    dirty = lab_table.result(jobs[1])
    dirty["environment"]["dirty"] = True
    write_json(jobs[1].folder / "result.json", dirty)
    lines: list[str] = []
    assert gather(submission.manifest, lines.append, tmp_path / "tables") == 0
    told = "\n".join(lines)
    assert "refused  plain/paper-seed1: its source tree had uncommitted changes" in told
    assert ".slurm" not in told.partition("refused")[2]
    assert list(load_evidence(load_table(lab_table.NAME, tmp_path / "tables"), tmp_path / "tables")[1]["plain"]) == [0]


def test_gathering_goes_on_where_evidence_cannot_be_written(tmp_path):
    jobs = jobs_of(tmp_path, "paper")
    submission = lab_table.submitted(jobs, tmp_path / "runs")
    for job in jobs:
        write_json(job.folder / "result.json", lab_table.result(job))
    (tmp_path / "tables" / "lab" / "results").write_text("a file where the folder would be")
    lines: list[str] = []
    assert gather(submission.manifest, lines.append, tmp_path / "tables") == 0
    assert lines[-1].startswith("no evidence was written: ")


def test_two_that_collect_at_once_lose_nothing(tmp_path):
    """Each knows the runs of one seed only; both seeds must be in the evidence."""
    table = lab_table.load(tmp_path / "tables", lab_table.PLAIN)
    for seed in table.seeds:
        for job in lab_table.jobs(table, tmp_path / f"runs{seed}", "paper"):
            if job.identity.seed == seed:
                write_json(job.folder / "result.json", lab_table.result(job))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from convrepro.evidence.collect import collect\nfrom convrepro.tables import load_table\n"
        "root, runs = map(Path, sys.argv[1:])\ntable = load_table('lab/tiny', root)\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "for _ in range(200):\n    collect(table, runs, {}, root)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "tables", tmp_path / f"runs{seed}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seed in table.seeds
    ]  # fmt: skip
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    evidence = tmp_path / "tables" / "lab" / "results" / "tiny.json"
    seen: set[str] = set()
    while any(process.poll() is None for process in both):
        if evidence.exists():
            now = set(json.loads(evidence.read_text())["rows"]["plain"].get("runs", {}))
            assert seen <= now, "a run that was in the evidence is gone"
            seen = now
    assert [process.wait() for process in both] == [0, 0]
    assert seen == {"0", "1"}
