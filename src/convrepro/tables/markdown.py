"""Markdown: tables, lists, and texts that mean what they say."""

import re

from convrepro.errors import visible

Grid = tuple[list[tuple[str, str]], list[list[str]]]

_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")
#: What Markdown would read as something else than the text that it is: a backslash before punctuation, emphasis, an
#: unpaired backtick, a tag, an entity, the end of a link's text.
_MARK = re.compile(
    r"\\(?=[!-/:-@\[-`{-~])|(?<=\S)\*|\*(?=\S)|`|(?<!\w)_(?=\S)|(?<=\S)_(?!\w)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|~~"
)


def escaped(text: str) -> str:
    """`text` for a page, in one line: shown as it is written, but for code between backticks, which stays code."""
    text = visible(" ".join(text.split()))
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_MARK.sub(r"\\\g<0>", text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _MARK.sub(r"\\\g<0>", text[end:])])


def bullet(text: str) -> str:
    """An item of a list; a text that begins as a heading, a quotation or another list does is no such thing."""
    line = escaped(text)
    first = re.match(r"(\d{1,9}(?=[.)]\s)|(?=[#>*+-]\s|#+\s|~{3}))", line)
    return f"- {line[: first.end()]}\\{line[first.end() :]}" if first else f"- {line}"


def markdown_grid(grid: Grid) -> list[str]:
    """A grid as the lines of a markdown table; its texts are escaped."""
    header, lines = grid
    titles = [
        f"{_cell(group)}<br>{_cell(title)}" if group.strip() and group != header[i - 1][0] else _cell(title)
        for i, (group, title) in enumerate(header)
    ]
    rule = ["---:" if group else ":---" for group, _ in header]
    return [f"| {' | '.join(line)} |" for line in (titles, rule, *([_cell(text) for text in line] for line in lines))]


def _cell(text: str) -> str:
    return escaped(text).replace("|", "\\|")
