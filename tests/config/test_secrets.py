"""A secret reaches no file: generated over kinds of secrets, keys of a run and verbs."""

import os
from itertools import product

import pytest

import convrepro.training.runner  # noqa: F401 (what it imports starts a process)
from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.config.secrets import is_secret, refuse_secrets, secret_in
from convrepro.errors import ConvReproError
from support import small_table

pytestmark = pytest.mark.unit

WORD = "hunter2hunter2"
#: Kinds of secrets as they are typed; {} is the secret itself.
KINDS = {
    "password": f"https://user:{WORD}@host.org/net-0123abcd.pth",
    "user": f"https://{WORD}@host.org/net-0123abcd.pth",
    "sig": f"https://host.org/net-0123abcd.pth?sv=1&sig={WORD}",
    "amazon": f"s3://host.org/net-0123abcd.pth?X-Amz-Credential=a&X-Amz-Signature={WORD}",
    "google": f"https://host.org/net-0123abcd.pth?X-Goog-Signature={WORD}",
    "token": f"https://host.org/net-0123abcd.pth?token={WORD}",
    "fragment": f"https://host.org/net-0123abcd.pth#access_token={WORD}",
    "in a path": f"/data/x?token={WORD}",
    "hugging face": f"hf_{WORD}{WORD}",
    "github": f"ghp_{WORD}{WORD}",
    "wandb": f"wandb_v1_{WORD}",
    "wandb before": "0123456789abcdef0123456789abcdef01234567",
    "amazon key": "AKIAABCDEFGHIJKLMNOP",
    "of the environment": "${oc.env:OTHER_API_KEY}",
    "its value": "a-key-of-something-else",
    "its value in a path": "/data/a-key-of-something-else/x",
}
KEYS = (
    "weights",
    "data_root",
    "data.root",
    "runs",
    "logger.project",
    "logger.entity",
    "+model_args.note",
    "conv.where",
)
KEYS += ("model", "recipe.optimizer.name", "+recipe.schedule.args.note", "data.name", "trainer.strategy")
NAMES = ("+model_args.api_key", "+model_args.password", "+recipe.optimizer.args.token", "+model_args.hub_token")
VERBS = ("train", "train --cfg", "train -m", "run", "submit", "submit --dry-run", "resubmit", "count", "export")


def words_of(verb: str, override: str, folder) -> list[str]:
    first, *options = verb.split()
    tables = first in ("run", "submit", "resubmit")
    words = [first, *options, *(["hetconv/table1", "--rows", "p4"] if tables else ["model=deepshift_mnist_fc"])]
    words += [override, *([] if "runs=" in override else [f"runs={folder}"])]
    return [*words, "--to", str(folder / "x.onnx")] if first == "export" else words


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr()
    assert stop.value.code == 2, (words, said)
    assert len(said.err.splitlines()) == 1, (words, said)
    return said.out + said.err


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTHER_API_KEY", "a-key-of-something-else")
    monkeypatch.setenv("CONVREPRO_SLURM_SITE", "")
    monkeypatch.setattr("convrepro.cluster.slurm.queue", lambda: [])
    monkeypatch.setattr("convrepro.cluster.slurm.max_array_size", lambda: 1001)


@pytest.mark.heavy
def test_no_verb_writes_or_repeats_a_secret(tmp_path, capsys):
    cases = [(f'{key}="{value}"', value) for key, value in product(KEYS, KINDS.values())]
    cases += [(f"{key}={WORD}", WORD) for key in NAMES]
    for number, (override, value) in enumerate(cases):
        for verb in VERBS if number % len(KINDS) == 0 else (VERBS[number % len(VERBS)],):
            said = refused(words_of(verb, override, tmp_path), capsys)
            assert "would be written to the record of the run; leave it out" in said, (verb, override, said)
            assert value not in said or "${" in value, (verb, override, said)
            assert WORD not in said
    assert len(cases) > 200
    assert not [path for _, _, files in os.walk(tmp_path) for path in files]


@pytest.mark.parametrize("kind", ["password", "sig", "token", "hugging face", "its value"])
def test_a_secret_in_the_row_of_a_table_is_refused_before_a_manifest(kind, tmp_path, capsys, monkeypatch):
    text = small_table.SMALL.replace("[conv=standard]", f"[conv=standard, \"weights='{KINDS[kind]}'\"]")
    root = small_table.write(tmp_path / "tables", text)
    from convrepro.tables import load_table

    monkeypatch.setattr("convrepro.tables.load_table", lambda name: load_table(name, root))
    for verb in ("run", "run --dry-run", "submit", "submit --dry-run"):
        said = refused([*verb.split(), "paper/small", "--rows", "plain", f"runs={tmp_path / 'runs'}"], capsys)
        assert "would be written to the record" in said
        assert WORD not in said
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_secret_that_a_variable_of_the_configuration_brings_is_refused(monkeypatch):
    monkeypatch.setenv("CONVREPRO_DATA", KINDS["sig"])
    with pytest.raises(ConvReproError, match=r"a URL on host\.org that carries a password or key"):
        compose_config([])


@pytest.mark.parametrize(
    "text",
    [
        "weights=https://models.org/net-0123abcd.pth?v=2",
        "data_root=/data/tokens/x",
        "data_root=${oc.env:HOME}",
        "+model_args.global_pool=token",
        "+model_args.class_token=false",
        "+model_args={class_token: true, num_tokens: 4}",
        "+model_args.token_mixer=pooling",
        "weights=/hub/snapshots/0123456789abcdef0123456789abcdef01234567/net.pth",
        f"weights_sha256={'ab' * 32}",
        "weights=http://[",
        "logger.project=secret-sauce",
    ],
)
def test_what_only_looks_like_a_secret_is_not_refused(text, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/data/tokens")
    assert secret_in(text) is None
    refuse_secrets([text])


def test_names_of_secrets():
    assert all(map(is_secret, ("WANDB_API_KEY", "SLURM_JWT", "hf_token", "DB_PASSWORD")))
    assert not any(map(is_secret, ("HOME", "data_root", "weights")))
