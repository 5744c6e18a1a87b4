"""Markdown tables."""

Grid = tuple[list[tuple[str, str]], list[list[str]]]


def markdown_grid(grid: Grid) -> list[str]:
    """A grid as the lines of a markdown table."""
    header, lines = grid
    titles = [
        f"{group}<br>{title}" if group and group != header[i - 1][0] else title
        for i, (group, title) in enumerate(header)
    ]
    rule = ["---:" if group else ":---" for group, _ in header]
    return [f"| {' | '.join(c.replace('|', chr(92) + '|') for c in line)} |" for line in (titles, rule, *lines)]
