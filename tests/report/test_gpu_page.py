"""The page of the runs on a GPU: up to date with its records, goals judged, damaged records named."""

import json
import re

import pytest

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import SetAside
from convrepro.evidence.gpu_record import FOLDER, records
from convrepro.report import gpu_page

pytestmark = pytest.mark.unit

PLACE = {"name": "A GPU", "torch": "2", "cudnn": 9, "triton": "3", "driver": "5"}

VALID = '{"schema": 1, "what": "speed", "time": "2026-11-26", "commit": "abc"'
VALID += ', "environment": {"name": "a", "torch": "2", "cudnn": 9, "triton": "3"}'


def written(folder, what, cases, **words):
    content = {"schema": 1, "what": what, "time": "2026-11-26", "commit": "abc", "environment": PLACE, "cases": cases}
    path = folder / "one.json"
    path.write_text(json.dumps(content | words))
    return path


def page(folder, *words, **more):
    written(folder, *words, **more)
    return gpu_page.render(records(folder))


def test_the_page_is_up_to_date():
    found = records()
    assert found, "nothing was measured"
    assert (REPRODUCTIONS / gpu_page.PAGE).read_text() == gpu_page.render(found)


@pytest.mark.parametrize("path", sorted((REPRODUCTIONS / FOLDER).glob("*.json")), ids=lambda path: path.name)
def test_a_record_says_where_it_was_made_and_names_no_folder_of_the_machine(path):
    content = json.loads(path.read_text())
    assert content["commit"]
    assert content["time"]
    assert content["environment"]["driver"]
    assert not re.search(r"(?<![\w.])/\w+/\w", path.read_text())


def test_goals_are_judged(tmp_path):
    ratios = {"dense": 1.0, "triton p=4": 0.70, "triton p=16": 0.601}
    text = page(tmp_path, "speed", {"training": {"ms": ratios, "ratio": ratios}}, notes=["A note."])
    assert "| triton P=4 | 0.700 | 0.70 | 0.70 | met |" in text
    assert "| triton P=16 | 0.601 | 0.60 | 0.60 | missed |" in text
    assert "A note." in text


def test_cases_are_counted_and_failures_named(tmp_path):
    cases = {
        "float32 one": {"worst": 0.5, "limit": 1.0},
        "float32 two": {"worst": 0.25, "limit": 1.0},
        "float32 three": {"error": "Wrong: by far\nin many lines"},
        "float32 four": {"error": "not reached"},
        "float32 five": {"skipped": "no reason"},
    }
    text = page(tmp_path, "correctness", cases)
    assert "| 2 | 1 | 1 | 0.50 |" in text
    assert "- failed: float32 three: Wrong: by far\n" in text


#: Made up, as all records in this file are.
TRAINED = {
    "throughput vgg16_cifar": {
        "images_per_second": {"package": 810.0, "loop": 1000.0, "tuned loop": 1200},
        "batch": 128,
    },
    "throughput vgg16_cifar compiled": {
        "images_per_second": {"package": 79.0, "loop": 100.0, "tuned loop": 110.0},
        "batch": 128,
    },
    "syncs vgg16_cifar": {"syncs": 2, "steps": 20, "where": {"checkpoints.py:155": 2}},
    "resumed resnet8_cifar": {
        "killed_at": 35,
        "difference": 0.001,
        "limit": 0.02,
        "equal": False,
        "top1": {"device": 31.0, "cpu": 31.25},
    },
    "throughput resnet20_cifar": {"error": "Wrong: by far"},
}


def test_training_is_compared_with_a_loop(tmp_path):
    text = page(tmp_path, "training", TRAINED, data="a made-up set")
    assert "The images are a made-up set." in text
    assert "| vgg16_cifar | no | 128 | 810 | 1000 | 1200 | 0.81 | 0.68 | 0.80 | met |" in text
    assert "| vgg16_cifar | yes | 128 | 79 | 100 | 110 | 0.79 | 0.72 | 0.80 | missed |" in text
    assert "waited for the GPU 2 times in 20 steps (`checkpoints.py:155` 2)" in text
    assert "killed after step 35 and continued; its losses differ" in text
    assert "at most 1.0e-03 (limit 0.02)" in text
    assert "31.00 % on the GPU and 31.25 % on the CPU" in text
    assert "- failed: throughput resnet20_cifar: Wrong: by far" in text
    assert "`trainer=gpu`: the speed" not in text
    assert gpu_page.ACCURACY in text


def test_candidates_stand_beside_the_fastest_form_of_a_library(tmp_path):
    times = {"plain": 0.04, "folded": 0.02, "(8, 64)": 0.015, "(16, 64)": 0.01}
    case = {"ms": times, "ratio": {form: time / 0.02 for form, time in times.items()}, "failed": {}}
    case |= {"library": "folded", "best": "(16, 64)", "worst": 0.001, "limit": 0.02}
    text = page(tmp_path, "candidates", {"shuffled 64": case, "shift 1": {"error": "off by 2, more than 0.02"}})
    assert "| shuffled 64 | 20.0 | 10.0 | 0.50 | folded | (16, 64) | 0.05 |" in text
    assert "failed: shift 1: off by 2, more than 0.02" in text


def test_rows_that_were_stopped_have_no_accuracy(tmp_path):
    cases = {
        "p1": {
            "epoch": 330,
            "epochs": 330,
            "top1": {"last": 80.5, "best": 81.25},
            "images_per_second": {"package": 9.0},
        },
        "p4": {"epoch": 12, "epochs": 330, "saved": True},
        "p64": {"error": "not reached"},
    }
    text = page(tmp_path, "evidence", cases, data="a made-up set")
    assert "on a made-up set: a proxy" in text
    assert "| p1 | 330 | 330 | 9 | 80.50 | 81.25 |" in text
    assert "| p4 | 12 | 330 |  |  |  |" in text
    assert "p64" not in text
    assert gpu_page.ACCURACY not in text
    assert gpu_page.ACCURACY in page(tmp_path, "evidence", {"p4": cases["p4"]})


def test_a_stage_that_did_not_run_says_why(tmp_path):
    text = page(tmp_path, "training", {}, skipped="this stage needs packages that are not installed: hydra")
    assert "It did not run: this stage needs packages that are not installed: hydra." in text


def test_what_no_record_has_is_not_measured(tmp_path):
    measured = {"training, compiled": {"ms": {"dense": 1.0}, "ratio": {"dense": 1.0}}}
    text = gpu_page.IF_MISSING["training, compiled"]
    assert text not in page(tmp_path, "speed", measured)
    assert text in page(tmp_path, "speed", {"training, compiled": {"error": "not reached"}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1', r"one\.json: this is not JSON"),
        ("[]", r"one\.json: \[\] must be a mapping"),
        (f'{VALID}, "cases": {{"a": 3}}}}', r"one\.json: cases\.a=3 must be a mapping"),
        (f'{VALID}, "cases": {{}}, "notes": 3}}', r"one\.json: notes=3 must be a list"),
        ('{"schema": 1, "what": "speed"}', r"one\.json: `time` is missing"),
    ],
)
def test_a_file_that_is_not_a_record_is_set_aside(text, message, tmp_path):
    (tmp_path / "one.json").write_text(text)
    with pytest.warns(SetAside, match=message):
        assert not records(tmp_path)


@pytest.mark.parametrize(
    ("what", "cases"),
    [
        ("weather", {}),
        ("speed", {"training": 3}),
        ("speed", {"training": {"ratio": {"dense": 1.0}}}),
        ("speed", {"training": {"ratio": {"dense": "1"}, "ms": {"dense": 1.0}}}),
        ("speed", {"layer 3": {"mac_ratio": 0.5}}),
        ("speed", {"profile dense": {"kernels": [3]}}),
        ("correctness", {"float32 one": {"worst": 0.5}}),
        ("correctness", {"float32 one": {"error": ""}}),
        ("correctness", {"": {"error": 3}}),
        ("training", {"throughput a": {"batch": 1}}),
        (
            "training",
            {"throughput a": {"batch": 1, "images_per_second": {"package": 1.0, "loop": 0.0, "tuned loop": 1.0}}},
        ),
        ("training", {"resumed a": {"equal": True}}),
        ("evidence", {"p1": {"epoch": 3}}),
        ("candidates", {"shift": {"library": "library", "best": "(8, 64)", "worst": 0.0, "limit": 1.0}}),
    ],
)
def test_a_damaged_record_is_named(what, cases, tmp_path):
    with pytest.warns(SetAside, match=r"one\.json"):
        assert "on A GPU" not in page(tmp_path, what, cases)
