"""Labels of points: their common beginning, and places where none covers another label, a point or the frame.

Lengths are in points (1/72 inch). A box is (left, bottom, right, top); a place is the lower left corner of the box of a
label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import cos, hypot, pi, sin

Spot = tuple[float, float]
Size = tuple[float, float]
Box = tuple[float, float, float, float]

DISTANCES = (5.0, 9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 64.0, 80.0, 100.0)
DIRECTIONS = 16
GAP = 1.5
"""The free space around a label."""
LEADER = 8.0
"""The distance of a label from its point beyond which a line joins them."""
ROUNDS = 4

COVERED = 1e4
CROSSED = 60.0


def place_labels(spots: Sequence[Spot], sizes: Sequence[Size], obstacles: Sequence[Box], frame: Box) -> list[Spot]:
    """Finds a place for the label of each spot: near the spot, inside `frame`, and free where possible.

    In a few rounds, each label takes the place that costs least, given the places of the others. The result is
    deterministic.
    """
    candidates = [
        [
            _Candidate(box, spot, _reach(box, spot), distance + COVERED * _covered(box, obstacles))
            for distance, box in near
        ]
        for spot, near in ((spot, _around(spot, size, frame)) for spot, size in zip(spots, sizes, strict=True))
    ]
    order = sorted(range(len(spots)), key=lambda i: -_neighbours(spots, i))
    chosen: dict[int, _Candidate] = {}
    for _ in range(ROUNDS):
        before = dict(chosen)
        for i in order:
            others = [other for j, other in chosen.items() if j != i]
            costs = [candidate.cost + sum(map(candidate.conflict, others)) for candidate in candidates[i]]
            chosen[i] = candidates[i][costs.index(min(costs))]
        if chosen == before:
            break
    return [chosen[i].box[:2] for i in range(len(spots))]


@dataclass(frozen=True)
class _Candidate:
    """A possible place for the label of a spot.

    `reach` is the box around label and spot; `cost` is that of the place without regard to other labels.
    """

    box: Box
    spot: Spot
    reach: Box
    cost: float

    def conflict(self, other: "_Candidate") -> float:
        """The additional cost beside another label: for covering it, and for lines that cross a label or each other."""
        if not overlaps(self.reach, other.reach):
            return 0.0
        mine, others = ((c.spot, _nearest(c.spot, c.box)) for c in (self, other))
        cost = COVERED * overlaps(_padded(self.box), other.box)
        return cost + CROSSED * (_meets(mine, other.box) + _meets(others, self.box) + _cross(mine, others))


def leader(spot: Spot, place: Spot, size: Size) -> tuple[Spot, Spot] | None:
    """The line from a spot to the nearest point of its label's box; None where they are close."""
    end = _nearest(spot, (*place, place[0] + size[0], place[1] + size[1]))
    return (spot, end) if hypot(end[0] - spot[0], end[1] - spot[1]) > LEADER else None


def overlaps(one: Box, other: Box) -> bool:
    """Whether two boxes have an area in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def spread(wanted: Sequence[float], height: float, low: float, high: float) -> list[float]:
    """Positions from `low` to `high` near the wanted ones, in their order and at least `height` apart.

    Where there is not enough room, the positions have equal distances.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    step = min(height, (high - low) / max(1, len(order) - 1))
    groups: list[tuple[float, int]] = []
    for i in order:
        groups.append((min(max(wanted[i], low), high), 1))
        while len(groups) > 1 and _top(groups[-2], step) + step > _bottom(groups[-1], step):
            (one, n), (other, m) = groups[-2:]
            middle = (one * n + other * m) / (n + m)
            half = (n + m - 1) * step / 2
            groups[-2:] = [(min(max(middle, low + half), high - half), n + m)]
    places = [_bottom(group, step) + k * step for group in groups for k in range(group[1])]
    return [place for _, place in sorted(zip(order, places, strict=True))]


def _top(group: tuple[float, int], step: float) -> float:
    return group[0] + (group[1] - 1) * step / 2


def _bottom(group: tuple[float, int], step: float) -> float:
    return group[0] - (group[1] - 1) * step / 2


def _around(spot: Spot, size: Size, frame: Box) -> Iterator[tuple[float, Box]]:
    """Yields the places around a spot that are inside the frame, with their distance.

    Where there is none, yields one place that is moved into the frame.
    """
    width, height = size
    inside = 0
    for distance in DISTANCES:
        for k in range(DIRECTIONS):
            dx, dy = cos(2 * pi * k / DIRECTIONS), sin(2 * pi * k / DIRECTIONS)
            x = spot[0] + dx * distance + (dx - 1) * width / 2
            y = spot[1] + dy * distance + (dy - 1) * height / 2
            box = (x, y, x + width, y + height)
            if box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]:
                inside += 1
                yield distance, box
    if not inside:
        x = min(max(spot[0], frame[0]), frame[2] - width)
        y = min(max(spot[1], frame[1]), frame[3] - height)
        yield DISTANCES[-1], (x, y, x + width, y + height)


def _padded(box: Box) -> Box:
    return box[0] - GAP, box[1] - GAP, box[2] + GAP, box[3] + GAP


def _reach(box: Box, spot: Spot) -> Box:
    padded = _padded(box)
    left, bottom, right, top = padded
    return min(left, spot[0]), min(bottom, spot[1]), max(right, spot[0]), max(top, spot[1])


def _covered(box: Box, obstacles: Sequence[Box]) -> int:
    padded = _padded(box)
    return sum(overlaps(padded, obstacle) for obstacle in obstacles)


def _nearest(spot: Spot, box: Box) -> Spot:
    return min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])


def _meets(line: tuple[Spot, Spot], box: Box) -> bool:
    """Whether one of a few points of a line is in a box."""
    (x0, y0), (x1, y1) = line
    points = ((x0 + (x1 - x0) * k / 8, y0 + (y1 - y0) * k / 8) for k in range(1, 9))
    return any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in points)


def _cross(one: tuple[Spot, Spot], other: tuple[Spot, Spot]) -> bool:
    """Whether two lines cross."""

    def side(a: Spot, b: Spot, c: Spot) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    return side(*one, other[0]) * side(*one, other[1]) < 0 and side(*other, one[0]) * side(*other, one[1]) < 0


def _neighbours(spots: Sequence[Spot], i: int) -> int:
    return sum(abs(x - spots[i][0]) < 60 and abs(y - spots[i][1]) < 30 for x, y in spots)


def common_prefix(labels: Sequence[str]) -> str:
    """The words with which all of at least three labels begin.

    Returns "" where the words have no letters, and where one of the labels consists of nothing else.
    """
    first, last = (min(labels), max(labels)) if len(labels) > 2 else ("", "")
    shared = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    end = max((shared.rfind(mark) for mark in (" ", "_")), default=-1)
    prefix = shared[: end + 1]
    has_letters = any(letter.isalpha() for letter in prefix)
    return prefix if has_letters and all(len(label) > len(prefix) for label in labels) else ""
