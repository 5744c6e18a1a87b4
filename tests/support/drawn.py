"""Reads back what a figure's SVG shows: marks, lines, texts, in points from the left bottom corner."""

import re
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from convrepro.tables import UNITS, Counted, Statics, Table

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]


class Drawn:
    """A parsed SVG."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        self.width, self.height = (float(number) for number in self.root.get("viewBox").split()[2:])

    def groups(self, name: str) -> list[ElementTree.Element]:
        """The groups called `name` or `<name>-<number>...`, in the order of the drawing."""
        return [g for g in self.root.iter(f"{SVG}g") if re.fullmatch(rf"{name}(-\d+)*", g.get("id", ""))]

    def marks(self, name: str) -> list[tuple[float, float]]:
        """Where the marks of a kind are."""
        uses = [use for group in self.groups(name) for use in group.iter(f"{SVG}use")]
        return [(float(use.get("x")), self.height - float(use.get("y"))) for use in uses]

    def lines(self, name: str) -> list[list[tuple[float, float]]]:
        """The corners of each path of the groups called so."""
        found = []
        for group in self.groups(name):
            uses = [(float(use.get("x")), float(use.get("y"))) for use in group.iter(f"{SVG}use")] or [(0.0, 0.0)]
            for path, (left, top) in zip(group.iter(f"{SVG}path"), uses, strict=True):
                corners = re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d"))
                found.append([(left + float(x), self.height - top - float(y)) for x, y in corners])
        return found

    @property
    def texts(self) -> list[str]:
        return [text.text or "" for text in self.root.iter(f"{SVG}text")]

    @property
    def boxes(self) -> dict[str, Box]:
        """What each horizontal text covers, by the text with a number before it."""
        boxes = {}
        for i, text in enumerate(self.root.iter(f"{SVG}text")):
            style = text.get("style")
            if "rotate(-90" in text.get("transform", "") or not text.text:
                continue
            size = float(re.search(r"font-size: ([\d.]+)px|font: (?:\w+ )*([\d.]+)px", style).group(1) or 10)
            font = FontProperties(size=size)
            width = TextToPath().get_text_width_height_descent(text.text, font, False)[0]
            anchor = {"middle": 0.5, "end": 1.0}.get((re.search(r"text-anchor: (\w+)", style) or [""] * 2)[1], 0.0)
            x, y = float(text.get("x")) - anchor * width, self.height - float(text.get("y"))
            boxes[f"{i} {text.text}"] = (x, y - 0.2 * size, x + width, y + 0.75 * size)
        return boxes

    @property
    def sizes(self) -> list[float]:
        """The size of each text in points."""
        styles = [text.get("style") for text in self.root.iter(f"{SVG}text")]
        return [float(re.search(r"([\d.]+)px", style)[1]) for style in styles]


def printed_statics(table: Table) -> Statics:
    """Counts that give the printed digits, so that nothing needs to be counted; 1 unit where nothing is printed."""
    return {
        row.id: {
            name: Fraction(p.value if (p := row.published.get(name)) and p.value else 1) * UNITS[metric.unit]
            for name, metric in table.metrics.items()
            if isinstance(metric, Counted)
        }
        for row in table.rows
        if not row.quoted
    }
