"""What users of Hydra type after `train`: the configuration instead of a run, and what is never silently dropped."""

import logging

import pytest
import yaml

from convrepro.cli.main import main

NETWORK = ["model=resnet18", "conv=hetconv", "conv.p=4"]
pytestmark = pytest.mark.unit


def said(capsys, *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    told = capsys.readouterr()
    assert stop.value.code == code, told.err
    return told.out if code == 0 else told.err


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch):
    import convrepro.training.run

    monkeypatch.setattr(convrepro.training.run, "run", lambda *_: pytest.fail("a run has started"))


@pytest.mark.parametrize("words", [["--cfg"], ["--cfg", "job"]])
def test_the_configuration_of_the_run_is_printed_as_it_is_checked(words, capsys):
    cfg = yaml.safe_load(said(capsys, *NETWORK, *words))
    assert (cfg["model"], cfg["conv"]["p"]) == ("resnet18", 4)
    assert "hydra" not in cfg


def test_hydras_own_configuration_is_printed(capsys):
    own = yaml.safe_load(said(capsys, *NETWORK, "--cfg", "hydra"))
    assert set(own) == {"hydra"}
    whole = yaml.safe_load(said(capsys, *NETWORK, "--cfg", "all"))
    assert {"hydra", "model", "conv"} <= set(whole)
    assert whole["hydra"]["sweep"]["dir"].startswith("${")
    resolved = yaml.safe_load(said(capsys, *NETWORK, "--cfg", "all", "--resolve"))
    assert "${" not in resolved["data_root"]


def test_the_logging_of_the_process_is_as_it_was(capsys):
    root = logging.getLogger()
    before = list(root.handlers), root.level
    for words in (["--cfg", "all"], ["--info", "plugins"]):
        said(capsys, *NETWORK, *words)
        assert (list(root.handlers), root.level) == before


@pytest.mark.parametrize("what", ["searchpath", "defaults", "plugins"])
def test_what_hydra_knows_is_printed(what, capsys):
    assert {"searchpath": "Config search path", "defaults": "Defaults List", "plugins": "Hydra Plugins"}[what] in said(
        capsys, *NETWORK, "--info", what
    )


def test_of_a_sweep_each_member_is_printed_and_none_is_trained(capsys):
    parts = list(yaml.safe_load_all(said(capsys, "-m", "model=resnet18", "conv=hetconv", "conv.p=2,4", "--cfg")))
    assert [cfg["conv"]["p"] for cfg in parts] == [2, 4]
    assert "chooses the values" in said(capsys, "-m", "hydra/sweeper=optuna", "--cfg", code=2)


def test_a_budget_is_chosen_by_its_option(capsys):
    assert yaml.safe_load(said(capsys, "--budget", "smoke", "--cfg"))["budget"]["name"] == "smoke"
    assert "budget" in said(capsys, "--budget", "huge", "--cfg", code=2)


@pytest.mark.parametrize("words", [["--nothing"], ["--resolve"], ["--cfg", "everything"], ["--info", "everything"]])
def test_what_does_not_exist_is_answered_with_the_usage_of_train(words, capsys):
    answer = said(capsys, *NETWORK, *words, code=2)
    assert "convrepro train --help" in answer or "--resolve has no effect without --cfg" in answer
    assert len(answer.splitlines()) == 1
