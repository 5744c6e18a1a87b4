"""A bound on the time of a network: measured before it is trained, once for each network."""

import csv

import pytest

from convrepro.cli.main import main
from convrepro.search.study import Study

#: A network with a quarter of the channels takes a third of the bound, one with IGCV3's sixfold channels three times
#: it, so that each is measured on its side on a machine that has other work to do, too.
SPACE = """
name: extremes
where: dense_kxk
group: 1
choices: [igcv3]
options: {model_args.widths: [[16, 32, 64], [4, 8, 16]]}
"""
BOUND = 1.0


@pytest.mark.parametrize("mode", ["inference", pytest.param("exported", marks=pytest.mark.exhaustive)])
def test_what_is_too_slow_is_measured_and_not_trained(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONVREPRO_CONFIG_DIR", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "search").mkdir(parents=True)
    (tmp_path / "conf" / "search" / "extremes.yaml").write_text(SPACE)
    words = [
        "search",
        "model=resnet8_cifar",
        "data=fashion_sample",
        "trainer=cpu",
        "logger=none",
        "--config-dir",
        "conf",
    ]
    words += ["budget.train_examples=100", "budget.test_examples=50", "--budget", "smoke", "--space", "extremes"]
    words += ["--sampler", "random", "--trials", "3", "--no-final", "--name", "s"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--max-latency", str(BOUND), "--latency-mode", mode, "--latency-batch", "32"])
    said = capsys.readouterr().out
    assert not end.value.code
    trials = Study(tmp_path / "runs" / "searches" / "resnet8_cifar" / "s").trials()
    times = {}
    for trial in trials:
        assert times.setdefault(tuple(trial["params"].values()), trial["latency"]) == trial["latency"], "measured once"
        slow = trial["latency"] > BOUND
        assert trial["state"] == ("infeasible" if slow else "complete")
        assert trial["excess"] == pytest.approx(max(0, trial["latency"] / BOUND - 1))
        assert ("run" in trial) != slow
        wide, operators = trial["params"]["model_args.widths"] == "[16,32,64]", set(trial["params"].values())
        if not wide and "igcv3" not in operators:
            assert not slow
        if wide and operators == {"igcv3", "[16,32,64]"}:
            assert slow
    assert sum(trial["state"] == "complete" for trial in trials) == 3
    assert said.count("not trained: it takes ") == sum(trial["state"] == "infeasible" for trial in trials)
    with (tmp_path / "searches" / "resnet8_cifar" / "s-trials.csv").open() as file:
        assert [float(line["latency"]) for line in csv.DictReader(file)] == pytest.approx(
            [trial["latency"] for trial in trials], abs=1e-4
        )
