"""Completion as bash asks for it, by the function that the README has users install, without torch and its company."""

import subprocess
import sys
from pathlib import Path

import pytest

from convrepro.cli.completion import SWITCH
from convrepro.cli.main import main
from convrepro.config.compose import choices
from convrepro.config.paths import table_names

#: The command, in a process that cannot import what takes long.
COMMAND = f"""#!{sys.executable}
import sys
for name in ("torch", "timm", "lightning", "hydra", "omegaconf", "pydantic", "wandb"):
    sys.modules[name] = None
from convrepro.cli.main import main
main()
"""
#: Bash's part when the key is pressed at the end of a line: it tells the function the line, and reads its answers.
ASK = """
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
ask() { COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9; COMPREPLY=(); _python_argcomplete convrepro
        printf '%s\\n' "${COMPREPLY[@]}" --; }
"""
LINES = {
    "verb": "convrepro co",
    "option": "convrepro train --inf",
    "table": "convrepro show hetconv/t",
    "paper": "convrepro run igcv",
    "second table": "convrepro collect hetconv/table1 deepshift/mnist",
    "key of a table": "convrepro run hetconv/table1 see",
    "group": "convrepro train con",
    "choice": "convrepro train conv=het",
    "choice after options": "convrepro train --budget smoke model=resnet18 recipe=hetconv_c",
    "choice between options": "convrepro train conv=hetconv --budget smoke recipe=hetconv_c",
    "choice of a sweep": "convrepro train -m conv=hetconv,igcv",
    "choice for count": "convrepro count model=resnet18 conv=low",
    "key": "convrepro train recipe.opt",
    "key of the choice": "convrepro train conv=hetconv conv.",
    "key that every logger has": "convrepro train logger=csv logger.",
    "key of what a file builds on": "convrepro train trainer=gpu trainer.acc",
    "added key": "convrepro train +model_",
    "budget": "convrepro run hetconv/table1 --budget s",
    "own operator": "convrepro train --config-dir OWN conv=min",
    "key of own operator": "convrepro train --config-dir OWN conv=mine conv.r",
    "nothing": "convrepro train conv=nothing_has_this_name",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What bash is offered after each of the lines."""
    root = tmp_path_factory.mktemp("completion")
    command = root / "convrepro"
    command.write_text(COMMAND)
    command.chmod(0o755)
    own = root / "own" / "conv"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("name: mine\nwhere: all\nratio: 2\n")
    asked = "\n".join(f"ask '{line.replace('OWN', str(own.parent))}'" for line in LINES.values())
    bash = ["bash", "--norc", "-c", f'PATH="{root}:{Path(sys.executable).parent}:$PATH"\n{SWITCH}\n{ASK}\n{asked}']
    done = subprocess.run(bash, capture_output=True, text=True, check=True, timeout=600)
    assert not done.stderr
    replies = done.stdout.split("--\n")[:-1]
    assert len(replies) == len(LINES)
    return {what: {word.strip() for word in said.split()} for what, said in zip(LINES, replies, strict=True)}


@pytest.mark.parametrize(
    ("what", "offered"),
    [
        ("verb", {"count", "collect", "compare", "coverage"}),
        ("option", {"--info"}),
        ("table", {name for name in table_names() if name.startswith("hetconv/t")}),
        ("second table", {name for name in table_names() if name.startswith("deepshift/mnist")}),
        ("key of a table", {"seed="}),
        ("group", {"conv=", "conv."}),
        ("choice", {"hetconv"}),
        ("choice after options", {"hetconv_cifar"}),
        ("choice between options", {"hetconv_cifar"}),
        ("choice of a sweep", {"hetconv,igcv1", "hetconv,igcv2", "hetconv,igcv3"}),
        ("choice for count", {name for name in choices("conv") if name.startswith("low")}),
        ("key", {f"recipe.optimizer.{key}=" for key in ("name", "lr", "momentum", "nesterov", "weight_decay", "args")}),
        (
            "key of the choice",
            {f"conv.{key}=" for key in ("name", "where", "include", "exclude", "unfit", "p", "arrangement", "form")},
        ),
        ("key that every logger has", {"logger.name=", "logger.every_n_steps="}),
        ("key of what a file builds on", {"trainer.accelerator=", "trainer.accumulate="}),
        ("added key", {"+model_args="}),
        ("budget", {"smoke"}),
        ("own operator", {"mine"}),
        ("key of own operator", {"conv.ratio="}),
        ("nothing", set()),
    ],
)
def test_bash_is_offered(answers, what, offered):
    assert answers[what] == offered


def test_a_paper_stands_for_its_tables_where_a_verb_takes_one(answers):
    assert answers["paper"] > {"igcv1", "igcv2", "igcv3", "igcv1/imagenet"}


@pytest.mark.parametrize("words", [["--shell-completion", "install=bash"], ["-sc", "install=zsh"], ["-sc"]])
def test_hydras_flag_is_answered_by_how_to_switch_completion_on(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words])
    assert stopped.value.code == 2
    assert SWITCH in capsys.readouterr().err
