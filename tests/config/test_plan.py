"""`conv=plan` and the keys that every operator has: what they compose to, and that they change no other digest."""

import pytest
import yaml

from convrepro.config.compose import compose_config
from convrepro.config.plan import conv_name
from convrepro.config.scientific import alike, scientific
from convrepro.errors import ConvReproError
from convrepro.runs.protocol import Protocol

pytestmark = pytest.mark.unit

WORDS = 'conv.entries=[{include: layer1.*, name: hetconv, p: 2}, {include: ["layer[23].*", fc], name: shift}]'


def digest(*words: str) -> str:
    return Protocol(scientific(compose_config(words))).digest


def test_a_run_of_one_operator_keeps_its_digest():
    """The first was recorded before there were plans, patterns and `unfit`."""
    known = "06b8fdb7bc8456342b95dff5d02f9d0ffcb1459e101062aed0b309eb9e85ed83"
    assert digest("conv=hetconv") == digest("conv=hetconv", "conv.include=[]", "conv.unfit=refuse") == known
    assert compose_config(["conv=gwc_pwc"]).conv.model_dump() == {
        "name": "gwc_pwc",
        "where": "dense_kxk",
        "num_groups": 4,
    }
    others = [["conv.include=[a]"], ["conv.exclude=[a]"], ["conv.unfit=keep"], ["conv.include=[b]"]]
    assert len({known, *(digest("conv=hetconv", *words) for words in others)}) == 5
    assert alike(["conv=hetconv", "conv.include=a"], ["conv=hetconv", "conv.include=[a]"])


def test_a_plan_is_the_same_from_words_and_from_a_file_and_is_recorded_in_full(tmp_path):
    cfg = compose_config(["conv=plan", WORDS])
    first, second = cfg.conv.plan
    assert (first.name, first.where, first.include, first.knobs["p"]) == ("hetconv", "dense_kxk", ["layer1.*"], 2)
    assert (second.where, second.include, second.knobs["variant"]) == ("all", ["layer[23].*", "fc"], "q")
    path = tmp_path / "plan.yaml"
    entries = [{"include": ["layer1.*"], "name": "hetconv", "p": 2, "where": "dense_kxk"}]
    entries += [{"name": "shift", "include": ["layer[23].*", "fc"]}]
    path.write_text(yaml.safe_dump(entries))
    assert compose_config(["conv=plan", f"conv.entries={path}"]) == cfg
    assert Protocol(scientific(cfg.model_dump())).digest == digest("conv=plan", WORDS)
    assert digest("conv=plan", WORDS) != digest("conv=plan", WORDS.replace("p: 2", "p: 4"))


def test_the_name_of_a_plan_is_short():
    plan = compose_config(["conv=plan", WORDS]).conv
    assert plan.title == conv_name(plan.model_dump()) == "plan:hetconv(p=2)+shift"
    many = [{"name": "hetconv", "p": p} for p in (2, 4, 8, 16, 2)]
    assert conv_name({"name": "plan", "entries": many}) == "plan:hetconv(p=2)+hetconv+hetconv(p=8)+1 more"
    assert compose_config(["conv=hetconv"]).conv.title == "hetconv"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["conv=plan"], "conv.entries=null must be the plan: a list such as"),
        (["conv=plan", "conv.entries=[]"], "conv.entries=[] must be a list of at least 1"),
        (["conv=plan", "conv.entries=no.yaml"], "conv.entries=no.yaml cannot be read: No such file"),
        (["conv=plan", "conv.entries=[3]"], "conv.entries[0]=3 must be a mapping"),
        (["conv=plan", "conv.entries=[{p: 2}]"], "`conv.entries[0].name` is missing"),
        (["conv=plan", "conv.entries=[{name: own}]"], "`conv.entries[0].where` is missing"),
        (["conv=plan", WORDS, "conv.include=[a]"], "is given for a whole plan; give it in an entry of conv.entries"),
        (["conv=plan", WORDS, "+conv.p=2"], "conv.p=2 is given for a whole plan"),
        (["conv=hetconv", WORDS], "conv=hetconv has no key 'entries'"),
        (["conv=hetconv", "conv.where=null"], "conv.where=null must be text"),
        (["conv=hetconv", "conv.include=[3]"], "conv.include[0]=3 must be text"),
        (["conv=hetconv", "conv.unfit=skip"], "conv.unfit=skip must be 'refuse' or 'keep'"),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(words, says):
    with pytest.raises(ConvReproError) as error:
        compose_config(words)
    assert says in str(error.value)


def test_a_file_that_holds_no_plan_or_a_secret_is_refused(tmp_path):
    for text, says in (
        ("name: hetconv", "the file must contain a list of entries"),
        ("[}", "it is no YAML"),
        ("[{name: shift, note: hf_abcdefghijklmnopqrstuvwx}]", "leave it out"),
        ("[{name: shift, _target_: os.system}]", "asks for a Python object"),
    ):
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(ConvReproError, match=says):
            compose_config(["conv=plan", f"conv.entries={tmp_path / 'plan.yaml'}"])
