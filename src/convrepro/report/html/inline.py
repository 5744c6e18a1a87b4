"""Prepares an SVG file for use inside an HTML page: makes its ids unique, and its colours those of the page."""

import re
import xml.etree.ElementTree as ElementTree

from markupsafe import Markup

from convrepro.report.plots.style import FAINT, INK, MUTED, PAPER

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
COLORS = {INK: "currentColor", PAPER: "var(--paper)", FAINT: "var(--line)", MUTED: "var(--muted)"}
LEFT_OUT = ("title", "metadata", "style")


def inline_svg(text: str, name: str) -> Markup:
    """Returns the drawing with `name` as prefix of each id, and without title, metadata, style sheet and fixed size."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in LEFT_OUT:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.attrib = {key.removeprefix(XLINK): _own(key, value, name) for key, value in element.attrib.items()}
    for fixed in ("width", "height", "version"):
        root.attrib.pop(fixed, None)
    root.set("aria-hidden", "true")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == f"{XLINK}href":
        return value.replace("#", f"#{name}-", 1)
    if key == "style":
        for color, own in COLORS.items():
            value = value.replace(color, own)
    return re.sub(r"url\(#", f"url(#{name}-", value)
