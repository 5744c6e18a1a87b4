"""A comparison of operators on one network: what a user asks for in a line, as a table like those of papers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from convrepro.config.compose import compose_config
from convrepro.config.overrides import key_of, parse, shown
from convrepro.errors import ConvReproError
from convrepro.runs.protocol import short
from convrepro.runs.storage import write_whole
from convrepro.tables import Table, load_table

DENSE = "dense"
#: The recipe of operators that start from trained weights, unless the user names another.
FINETUNE = "finetune"
_WORD = re.compile(r"([\w-]+)(?:\((.*)\))?", re.ASCII | re.DOTALL)
_ARGUMENT = re.compile(r",\s*(?=[\w.]+\s*=)")
METRICS = {
    "top1": {"unit": "%", "tol": 0.3, "why": "nothing is published here that could be reproduced"},
    **{
        rule: {"unit": "M", "decimals": 3, "printed": "round", "count": rule}
        for rule in ("macs", "multiplications", "params", "weight_bits")
    },
}


@dataclass(frozen=True)
class Choice:
    """A row of a comparison: its title as a user reads it, and the overrides that it adds."""

    title: str
    overrides: tuple[str, ...]

    @property
    def id(self) -> str:
        """The name of the row: the title in lower-case letters, digits and underscores."""
        return re.sub(r"[^a-z0-9]+", "_", self.title.lower().replace(".", "p")).strip("_")


def operators(words: Sequence[str]) -> list[Choice]:
    """The operators of words such as `igcv3` and `hetconv(p=2,4, arrangement=shifted)`, one for each set of values.

    Values are written as for `train -m`: `p=2,4`, `p=range(1,9)`. Raises ConvReproError for a word of another form,
    and for an operator that is there twice.
    """
    found: list[Choice] = []
    for word in words:
        match = _WORD.fullmatch(word.strip())
        if not match:
            raise ConvReproError(f"{shown(word)} is no operator; write it as igcv3 or as hetconv(p=2,4)")
        name, inside = match[1], (match[2] or "").strip()
        knobs = [_values(word, name, text) for text in _ARGUMENT.split(inside)] if inside else []
        for values in product(*knobs):
            title = f"{name}({','.join(values)})" if values else name
            found.append(Choice(title, (f"conv={name}", *(f"conv.{value}" for value in values))))
    ids = [choice.id for choice in found]
    if twice := [choice.title for choice in found if ids.count(choice.id) > 1]:
        raise ConvReproError(f"{twice[0]} is there twice; name each operator once")
    if not found:
        raise ConvReproError("there is nothing to compare; name operators, such as --convs igcv3 'hetconv(p=2,4)'")
    return found


def _values(word: str, name: str, text: str) -> list[str]:
    """`knob=value` for each value of `knob=value,value`."""
    if "=" not in text:
        raise ConvReproError(f"{shown(word)}: {shown(text)} is no knob; write {name}(knob=value)")
    override = parse(f"conv.{text.strip()}")
    key = override.key_or_group.removeprefix("conv.")
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
    return [f"{key}={value}" for value in values]


@dataclass(frozen=True)
class Comparison:
    """A network with the operators that are compared on it.

    Attributes:
        base: the overrides of all rows, such as model=, data= and a checkpoint by weights=.
        choices: the operators, and dense networks that are narrower.
        from_dense: whether operators start from the trained weights of the dense network.
    """

    base: tuple[str, ...]
    choices: tuple[Choice, ...]
    seeds: tuple[int, ...]
    from_dense: bool = False

    @property
    def name(self) -> str:
        """The name of the table: the network, the data set, and a digest of what else the user sets."""
        cfg = compose_config(self.base)
        rest = sorted(text for text in self.base if key_of(text) not in ("model", "data"))
        paper, data = (re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") for text in (cfg.model, cfg.data.name))
        more = ["from_dense"] * self.from_dense + [short({"base": rest})] * bool(rest)
        return f"{paper}/{'_'.join([data, *more])}"

    @property
    def starts_trained(self) -> bool:
        """Whether the operators start from trained weights."""
        return self.from_dense or any(key_of(text) == "weights" for text in self.base)

    def write(self, root: Path) -> Table:
        """Writes the table into the folder of tables `root`, and returns it."""
        cfg = compose_config(self.base)
        chosen = any(key_of(text) == "recipe" for text in self.base)
        recipe = [f"recipe={FINETUNE}"] if self.starts_trained and not chosen else []
        rows: list[dict[str, object]] = []
        for choice in (Choice(DENSE, ("conv=standard",)), *self.choices):
            fresh = "weights=null" in choice.overrides or (self.from_dense and choice.title == DENSE)
            overrides = [*choice.overrides, *([] if fresh else recipe)]
            source = {"weights_from": DENSE} if self.from_dense and not fresh else {}
            rows.append({"id": choice.id, "label": choice.title, "overrides": overrides, "published": {}, **source})
        question = "Which operator costs least for the accuracy that it reaches?"
        title = f"Operators in {cfg.model} on {cfg.data.name}"
        return write_table(self.name, title, question, "compare", self.base, self.seeds, rows, root)


def write_table(
    name: str,
    title: str,
    question: str,
    verb: str,
    base: Sequence[str],
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, object]],
    root: Path,
) -> Table:
    """Writes a table of the user's own, which `verb` makes, into the folder of tables `root`, and returns it."""
    content = {
        "title": title,
        "source": {"paper": name.split("/")[0], "table": f"a {'comparison' if verb == 'compare' else verb} of ours"},
        "question": question,
        "base": list(base),
        "seeds": list(seeds),
        "metrics": METRICS,
        "rows": list(rows),
    }
    text = f"# Written by `convrepro {verb}`.\n" + yaml.safe_dump(content, sort_keys=False, width=120)
    write_whole(root / f"{name}.yaml", text.encode())
    return load_table(name, root)
