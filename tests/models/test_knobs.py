"""Knobs of operators: a value of a type that the operator's signature does not name is rejected before any work."""

import pytest
from torch import nn

import convrepro.training.runner  # noqa: F401 (what it imports starts a process)
from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from convrepro.models.knobs import check_knobs
from convrepro.ops import LINEAR_OPERATORS, OPERATORS, knobs

pytestmark = pytest.mark.unit

INTEGERS = (1, 4, 10**30)
#: What the knobs of each kind may be, written by hand; no operator has a knob of another kind.
NUMBER, NULLABLE, FLAG = INTEGERS, (*INTEGERS, None), (True, False)
KINDS = {
    "hetconv": {
        "p": (*NUMBER, "out"),
        "arrangement": ("contiguous", "shifted"),
        "form": ("auto", "plain", "fused", "triton"),
    },
    "gwc_pwc": {"num_groups": NUMBER},
    "shift": {
        "variant": ("q", "ps", "v1"),
        "bits": (*NULLABLE, "paper"),
        "activation": ("paper", "float", [1], [8, 8]),
        "rounding": ("deterministic", "stochastic"),
        "frozen": FLAG,
        "clamp_latent": FLAG,
    },
    "igcv1": {
        "primary_partitions": NUMBER,
        "secondary_partitions": NULLABLE,
        "secondary": ("learned", "sum"),
        "form": ("auto", "plain", "folded"),
    },
    "igcv2": {
        "layers": NULLABLE,
        "branch_channels": (None, [1], [8, 8]),
        "complementary": FLAG,
        "channel_multiplier": FLAG,
        "form": ("auto", "plain", "folded"),
    },
    "igcv3": {"expansion": NUMBER, "groups_in": NUMBER, "groups_out": NUMBER, "form": ("auto", "plain", "folded")},
    "low_precision": {
        "precision": ("binary", "ternary", "xnor", "fixed", "shared"),
        "bits": NULLABLE,
        "clusters": NULLABLE,
        "activation_bits": NULLABLE,
    },
    "low_rank": {
        "rank": (*NULLABLE, 0.25, 2.5),
        "energy": (*NULLABLE, 0.25, 2.5),
        "scheme": ("channel", "spatial"),
    },
    "sparse": {"density": (*INTEGERS, 0.25, 2.5), "structure": ("unstructured", "block")},
}
VALUES = (*NULLABLE, *FLAG, 0.25, 2.5, "four", "maybe", "", "4", "None", [], [1], [8, 8], ["a"], [0.5], {}, {"a": 1})
VALUES += ("out", "paper", "float", "auto", "plain", "x" * 300, "a\tb")
#: An empty list is a list: what it lacks is for the operator to say.
LISTS = {("shift", "activation"), ("igcv2", "branch_channels")}


def accepted(operator: str, knob: str, value: object) -> bool:
    allowed = [*KINDS[operator][knob], *([[]] if (operator, knob) in LISTS else [])]
    return any(type(value) is type(a) and value == a for a in allowed)


def test_every_knob_of_every_operator_takes_values_of_its_kind_and_no_others():
    rejected = 0
    for name, operator in OPERATORS.items():
        assert set(knobs(operator)) == set(KINDS.get(name, {})), name
        for knob in knobs(operator):
            for value in VALUES:
                try:
                    check_knobs(name, operator, {knob: value})
                    message = ""
                except ConvReproError as error:
                    message = str(error)
                    assert message.startswith(f"conv.{knob}"), message
                    assert message.endswith(f"; knobs of {name}: {', '.join(knobs(operator))}"), message
                    assert "must be" in message
                    assert message.isprintable()
                    rejected += 1
                assert (not message) == accepted(name, knob, value), f"{name}.{knob}={value!r}: {message or 'accepted'}"
    assert rejected > 500


def test_the_linear_forms_have_the_knobs_of_the_convolutions():
    for name, operator in LINEAR_OPERATORS.items():
        with pytest.raises(ConvReproError, match=f"knobs of {name}"):
            check_knobs(name, operator, {next(iter(knobs(operator))): [None]})


def test_an_untyped_knob_of_a_users_operator_takes_anything():
    class Own(nn.Conv2d):
        def __init__(self, *args, knob=1, other: int = 2, **shape):
            super().__init__(*args, **shape)

    check_knobs("own", Own, {"knob": ["any", None], "other": 3})
    with pytest.raises(ConvReproError, match=r"conv\.other=x must be a whole number; knobs of own: knob, other"):
        check_knobs("own", Own, {"other": "x"})


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("conv.p=four", "conv.p=four must be a whole number or 'out'; knobs of hetconv: p, arrangement, form"),
        ("conv.p=2.5", "conv.p=2.5 must be a whole number or 'out'"),
        ("conv.p=[1]", "conv.p=[1] must be a whole number or 'out'"),
        ("+conv.bias=maybe", "operator hetconv has no knob 'bias'; valid: p, arrangement, form"),
        ("conv.where=somewhere", "where rule 'somewhere' does not exist; valid: dense_kxk"),
        ("conv.name=hetcon", "operator 'hetcon' does not exist; valid: standard, hetconv"),
    ],
)
def test_every_verb_rejects_a_bad_knob_before_data_and_network(word, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convrepro.models.build.create", lambda *_: pytest.fail("a network was built"))
    monkeypatch.setattr("convrepro.cluster.slurm.queue", lambda: [])
    monkeypatch.setattr("convrepro.cluster.slurm.max_array_size", lambda: 1001)
    nowhere = ["conv=hetconv", word, f"data_root={tmp_path / 'nowhere'}", f"runs={tmp_path}", "data=cifar10"]
    nowhere += ["data.download=false"]
    table = ["hetconv/table1", "--rows", "p4", f"runs={tmp_path}", word, f"data_root={tmp_path}"]
    verbs = [["train", *nowhere], ["count", *nowhere], ["run", *table], ["submit", "--dry-run", *table]]
    monkeypatch.setenv("CONVREPRO_SLURM_SITE", "")
    for words in verbs:
        with pytest.raises(SystemExit) as stop:
            main(words)
        message = capsys.readouterr().err
        assert stop.value.code == 2
        assert says in message, words
        assert len(message.splitlines()) == 1


def test_a_size_beyond_all_memory_is_one_sentence(capsys):
    words = ["count", "model=deepshift_mnist_conv", "conv=igcv3", "conv.expansion=1000000000000000000"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("convrepro: layer '")
    assert len(message.splitlines()) == 1
