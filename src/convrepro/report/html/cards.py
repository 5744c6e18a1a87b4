"""A card for each paper: what of it reproduces, in numbers and in the first words of its notes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convrepro.config.paths import REPRODUCTIONS
from convrepro.report.html.content import BAD, GOOD
from convrepro.report.papers import title
from convrepro.tables import Results, Statics, Table, tally

#: Kind of verdict -> its word, and verdicts with the words for what they are a number of.
KINDS = {
    "static": ("counted", {"static-ok": "as printed", "static-off": "off"}),
    "trained": ("trained", {}),
    "claims": ("claims", {"holds": "hold", "fails": "fail"}),
}
HEADINGS = ("What reproduces", "What does not", "What was not run")
#: Characters of a note's first sentences that are enough.
ENOUGH = 60


@dataclass(frozen=True)
class Number:
    """How many values have a verdict, such as 12 `as printed`, and the CSS class of it."""

    number: int
    word: str
    look: str


@dataclass(frozen=True)
class Card:
    """A paper: `numbers` by kind of verdict, `notes` by heading, and the name of each table with its anchor."""

    title: str
    numbers: Mapping[str, tuple[Number, ...]]
    notes: Mapping[str, str]
    tables: tuple[tuple[str, str], ...]


def cards(entries: Iterable[tuple[Table, Statics, Results]], root: Path = REPRODUCTIONS) -> list[Card]:
    """The cards of the papers of these tables, in their order."""
    papers: dict[str, list[tuple[Table, Statics, Results]]] = {}
    for entry in entries:
        papers.setdefault(entry[0].source.paper, []).append(entry)
    found = []
    for paper, members in papers.items():
        counts = {kind: Counter[str]() for kind in KINDS}
        for table, statics, results in members:
            for kind, added in tally(table, statics, results).items():
                counts[kind].update(added)
        numbers = {KINDS[kind][0]: _numbers(kind, counter) for kind, counter in counts.items() if counter}
        tables = tuple((table.name, table.name.replace("/", "-")) for table, _, _ in members)
        found.append(Card(title(paper, root), numbers, _notes(root / paper / "notes.md"), tables))
    return found


def _numbers(kind: str, counter: Mapping[str, int]) -> tuple[Number, ...]:
    """Good verdicts first, then bad ones, then the others."""
    words = KINDS[kind][1]
    order = sorted(counter, key=lambda verdict: (verdict not in GOOD, verdict not in BAD, verdict))
    return tuple(Number(counter[verdict], words.get(verdict, verdict), _look(verdict)) for verdict in order)


def _look(verdict: str) -> str:
    return "good" if verdict in GOOD else "bad" if verdict in BAD else "open"


def _notes(path: Path) -> dict[str, str]:
    """The first sentences of the notes under each heading, without marks of Markdown."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = {}
    for heading in HEADINGS:
        if paragraph := re.search(rf"\*\*{heading}\.\*\*\s+(.+?)(?:\n\n|\Z)", text, re.DOTALL):
            found[heading] = _beginning(" ".join(re.sub(r"[*`]", "", paragraph[1]).split()))
    return found


def _beginning(text: str) -> str:
    """Whole sentences, as many as say enough."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text):
        kept = f"{kept} {sentence}".strip()
        if len(kept) >= ENOUGH:
            break
    return kept
