"""A run of a layer plan: killed, resumed, started from, exported; another plan is another run."""

import torch

from convrepro.config.compose import compose_config
from convrepro.models.build import build_network
from convrepro.models.export import export
from support.patience import wait
from support.small_runs import TINY, before_step, ended, science, start, train

ENTRIES = (
    "[{include: features.*, name: hetconv, p: 2}, {include: [neck.*, linear], where: all, name: shift, variant: ps}]"
)


def test_a_run_of_a_plan_resumes_and_its_checkpoint_starts_and_is_exported(tmp_path):
    words = ["model=deepshift_mnist_conv", "recipe=deepshift_mnist_v5", *TINY]
    words += ["recipe.epochs=3", "recipe.batch_size=16", "budget.train_examples=128", "budget.test_examples=20"]
    words += ["conv=plan", f"conv.entries={ENTRIES}"]
    said: list[str] = []
    unbroken = train(words, tmp_path / "unbroken", said.append)
    replaced = "hetconv(p=2) at dense_kxk in features.*: 1 replaced; shift(variant=ps) at all in neck.*, linear: 2 repl"
    assert any(replaced in line for line in said)

    process = start(words, tmp_path / "killed", first=before_step(3 * 8 - 1))
    wait(lambda: list((tmp_path / "killed").rglob("last.ckpt")), process)
    process.kill()
    ended(process)
    assert science(train(words, tmp_path / "killed")) == science(unbroken)

    (checkpoint,) = (tmp_path / "killed").rglob("last.ckpt")
    network, report = build_network(compose_config([*words, f"weights={checkpoint}"]))
    assert str(report.weights).endswith("loaded as they are, with plan:hetconv(p=2)+shift(variant=ps) in place")
    made = export(network, torch.randn(2, 1, 28, 28), tmp_path / "net.pt2")
    assert made.difference < 1e-3

    train([word.replace("p: 2", "p: 5") for word in words], tmp_path / "killed")
    assert len(list((tmp_path / "killed").rglob("result.json"))) == 2
