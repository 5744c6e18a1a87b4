"""The HTML page as text: what it says, that nothing in it can do harm, and that it needs nothing from elsewhere."""

import os
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from convrepro.evidence.coverage_record import REFUSED, cells, read_record
from convrepro.evidence.speed_record import OPERATORS, merged, records
from convrepro.evidence.store import load_evidence
from convrepro.report.html import Entry, render_page
from convrepro.report.html.cards import cards
from convrepro.report.html.inline import inline_svg
from convrepro.report.plots.draw import svg
from convrepro.report.plots.figures import figures
from convrepro.tables import list_papers, list_tables, load_table, tally
from support.command import convrepro
from support.pages import NASTY, entries, parts
from support.small_table import write

VOID = {"meta", "input", "img", "br", "link"}


class Document(HTMLParser):
    """Elements as (tag, attributes), and the text of each table's cells by the section that they are in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.items: dict[str, str] = {}
        self._path: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._path.append((tag, attributes))
        if tag == "tr" and "data-verdicts" in attributes:
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th") and self._row:
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag):
        while self._path and self._path.pop()[0] != tag:
            pass

    def handle_data(self, data):
        self.texts.append(data)
        if self._row and self.rows[self.section][-1]:
            self.rows[self.section][-1][-1] += data
        if self._path and self._path[-1][0] in ("li", "b"):
            target = next((a["id"] for t, a in reversed(self._path) if t == "li" and "id" in a), "")
            self.items[target] = self.items.get(target, "") + data

    @property
    def section(self) -> str:
        return next((a.get("id", "") for t, a in reversed(self._path) if t == "section"), "")

    @property
    def _row(self) -> bool:
        return any(tag == "tr" and "data-verdicts" in attributes for tag, attributes in self._path)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text():
    return render_page(entries(list_tables()), parts())


@pytest.fixture(scope="module")
def page(text):
    return Document(text)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    table = load_table("paper/small", write(tmp_path_factory.mktemp("tables"), NASTY))
    statics = {"a": {"macs": 100_000_000}, "b": {"macs": 50_400_000}}
    return render_page([Entry(table, statics, {}, {})])


def test_every_row_and_claim_of_every_table_is_there(page):
    for name in list_tables():
        table = load_table(name)
        labels = [f"{row.label} {row.id}" for row in table.rows] + [claim.text for claim in table.claims]
        assert [row[0] for row in page.rows[name.replace("/", "-")]] == labels


def test_values_stand_where_the_table_has_them(page):
    rows = {row[0]: row for row in page.rows["hetconv-table1"]}
    assert rows["VGG-16_P4 p4"] == [
        *("VGG-16_P4 p4", "93.93", "", "", "105.98", "105.98", "ok", "66.22", "66.22", "ok", "5.17", "5.17", "ok"),
        "not run, static-ok",
    ]
    assert rows["VGG-16_P1_SE p1_se"][1] == "~94.13"
    mnist = {row[0]: row for row in page.rows["deepshift-mnist_v5"]}
    assert re.fullmatch(r"98.\d\d ±\d.\d\d \(3\)", mnist["Simple Conv, original conv_original"][2])
    assert mnist["Simple Conv, original conv_original"][-1] == "reproduced"


def test_the_list_of_tables_says_what_the_scoreboard_says(text):
    lines = re.findall(r'<tr data-section="(.+?)">(.+?)</tr>', text, re.DOTALL)
    assert [name for name, _ in lines] == [name.replace("/", "-") for name in list_tables()]
    titles = re.findall(r"<th[^>]*><button[^>]*>(.+?)</button>", text[: text.index("data-section")])
    board = {name: dict(zip(titles[1:], re.findall(r'data-sort="(\d+)"', line), strict=True)) for name, line in lines}
    for entry in entries(list_tables()):
        line, counts = board[entry.table.name.replace("/", "-")], tally(entry.table, entry.statics, entry.results)
        for title, kind, verdict in (
            ("ok", "static", "static-ok"),
            ("reproduced", "trained", "reproduced"),
            ("off", "trained", "off"),
            ("not run", "trained", "not run"),
            ("hold", "claims", "holds"),
            ("fail", "claims", "fails"),
        ):
            assert line[title] == str(counts[kind].get(verdict, 0)), (entry.table.name, title)
    assert (board["deepshift-mnist_v1"]["rows"], board["deepshift-mnist_v1"]["reproduced"]) == ("10", "5")


def test_speed_and_coverage_stand_below_the_tables(text):
    """Each operator and row that was timed, each network that was tried, and as many refusals as the record has."""
    speed, coverage = (text[text.index(f'id="{name}"') :] for name in ("speed", "coverage"))
    speed = speed[: speed.index('id="coverage"')]
    alone = (OPERATORS, "common/fashion_mnist")  # The rows of papers share a table, which names the paper's.
    timed = {one.name if one.group in alone else f"{one.group}: {one.name}" for one in merged(records())}
    assert timed == set(re.findall(r"<tr><td>(.+?)</td>", speed))
    record = read_record()
    assert re.findall(r"<tr><td>[^<]+</td><td>(\w+)</td><td>(?:\d+x\d+)?</td>", coverage) == [*record["networks"]]
    refused = sum(cell["outcome"] == REFUSED for _, cell in cells(record))
    assert len(re.findall(r"<td>refused \[\d+\]", coverage)) == refused > 50


def test_every_published_value_leads_to_its_source_and_confidence(page):
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [a["href"] for a in page.all("a")]
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= ids
    values = [a for a in page.all("a") if "-source-" in a["href"]]
    published = [
        p
        for name in list_tables()
        for row in load_table(name).rows
        for p in row.published.values()
        if p.value is not None
    ]
    assert len(values) == len(published)
    told = Counter(page.items[a["href"][1:]] for a in values)
    assert told == Counter(f"{p.confidence}: {' '.join(p.source.split())}" for p in published)
    assert all(a["title"].startswith(page.items[a["href"][1:]]) for a in values)


def test_a_misprint_is_told_beside_the_value(page):
    table = load_table("hetconv/table1")
    erratum = " ".join(table.row("dwc_pwc").published["macs"].erratum.split())
    assert [a["title"].endswith(f"cause: convention; erratum: {erratum}") for a in page.all("a") if "title" in a].count(
        True
    ) == 1


def test_each_paper_has_a_card_with_its_numbers_and_what_its_notes_begin_with():
    known = [(table, *load_evidence(table)) for table in map(load_table, list_tables())]
    found = {card.title: card for card in cards(known)}
    assert len(found) == len(list_papers())
    mine = [tally(*entry) for entry in known if entry[0].source.paper == "igcv3"]
    card = found["IGCV3"]
    for kind, heading in (("static", "counted"), ("trained", "trained"), ("claims", "claims")):
        total = sum((Counter(numbers[kind]) for numbers in mine), Counter())
        assert sorted(one.number for one in card.numbers[heading]) == sorted(total.values())
    assert [one.look for one in card.numbers["counted"]][:2] == ["good", "bad"]
    assert card.notes["What was not run"].startswith("Every accuracy: 480 epochs of ImageNet")
    assert all(text.endswith((".", ":")) and "*" not in text for text in card.notes.values())


def test_tables_in_any_order_make_one_card_for_a_paper():
    found = cards((e.table, e.statics, e.results) for e in entries(["igcv3/cifar", "hetconv/table4", "igcv3/imagenet"]))
    assert [[name for name, _ in card.tables] for card in found] == [
        ["igcv3/cifar", "igcv3/imagenet"],
        ["hetconv/table4"],
    ]


def test_the_page_begins_with_the_cards(page, text):
    assert text.index('<article class="card">') < text.index('<form id="filters"')
    assert len(page.all("article")) == len(list_papers())


def test_names_are_unique_on_the_whole_page(page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, number in ids.items() if number > 1] == []
    used = {value[1:] for _, attributes in page.elements for key, value in attributes.items() if key == "href"}
    used |= {
        name for _, a in page.elements for value in a.values() if value for name in re.findall(r"url\(#(.+?)\)", value)
    }
    assert used <= ids.keys()


def test_it_needs_nothing_from_elsewhere(page, text):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in text
    assert [a["http-equiv"] for a in page.all("meta") if "http-equiv" in a] == ["Content-Security-Policy"]


def test_what_a_table_says_is_shown_and_not_run(nasty):
    page = Document(nasty)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert len(page.all("b")) == 2
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    shown = " ".join(page.texts)
    for words in ("</title><script>alert('title')</script> & <b>", "{{ 7 * 7 }}</th><script>alert(5)</script>"):
        assert words in shown
    for number in range(5, 10):
        assert f"<script>alert({number})</script>" in shown
    titles = [a["title"] for a in page.all("a") if "title" in a]
    assert titles[0] == 'found: " onclick="alert(4)" <p>; note: </a><script>note</script>'
    assert "alert" not in re.search(r"<script>.*?</script>", nasty, re.DOTALL)[0]


def test_plots_are_drawn_in_the_colours_of_the_page():
    table = load_table("deepshift/mnist_v5")
    for figure in figures(table, {}, load_evidence(table)[1]):
        drawing = inline_svg(svg(figure), "x")
        assert "var(--paper)" in drawing
        assert "currentColor" in drawing
        assert not {"#ffffff", "#1f2328", "<?xml", "<style", "xmlns:"} & set(
            re.findall(r"#\w{6}|<\W?\w+|xmlns:", drawing)
        )
        assert set(re.findall(r'id="(\w)', drawing)) == {"x"}


def test_the_page_is_the_same_each_time(tmp_path, nasty):
    names = ["deepshift/mnist_v1", "lecture/separable"]
    assert render_page(entries(names)) == render_page(entries(names))


def test_the_command_writes_the_page_of_what_is_named(tmp_path):
    words = ("report", "lecture/separable", "lecture/grouped", "--html")
    done = convrepro(*words, "here.html", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "here.html\n"), done.stderr
    assert list(Document((tmp_path / "here.html").read_text()).rows) == ["lecture-separable", "lecture-grouped"]
    nowhere = convrepro(*words, os.path.join("no", "folder.html"), cwd=tmp_path)
    assert nowhere.returncode == 2
    assert "no/folder.html cannot be written" in nowhere.stderr
