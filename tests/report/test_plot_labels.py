"""Labels: each at a free place near its point, in any crowd, the same each time."""

import random
from itertools import combinations, pairwise
from math import hypot

import pytest

from convrepro.report.plots.labels import common_prefix, leader, overlaps, place_labels, spread

pytestmark = pytest.mark.unit

FRAME = (0.0, 0.0, 500.0, 300.0)


def crowd(seed: int, number: int = 18, side: float = 200.0):
    rng = random.Random(seed)
    spots = [(rng.uniform(20, 20 + side), rng.uniform(20, 20 + side)) for _ in range(number)]
    sizes = [(rng.uniform(20, 90), 10.0) for _ in spots]
    marks = [(x - 3, y - 3, x + 3, y + 3) for x, y in spots]
    return spots, sizes, marks


def boxes(places, sizes):
    return [(x, y, x + width, y + height) for (x, y), (width, height) in zip(places, sizes, strict=True)]


@pytest.mark.parametrize("seed", range(10))
def test_labels_cover_neither_each_other_nor_points_and_stay_in_the_frame(seed):
    spots, sizes, marks = crowd(seed)
    placed = boxes(place_labels(spots, sizes, marks, FRAME), sizes)
    assert not any(overlaps(one, other) for one, other in combinations(placed, 2))
    assert not any(overlaps(box, mark) for box in placed for mark in marks)
    assert all(x0 >= 0 and y0 >= 0 and x1 <= 500 and y1 <= 300 for x0, y0, x1, y1 in placed)


def test_a_lone_label_is_beside_its_point_without_a_line():
    (place,) = place_labels([(100, 100)], [(40, 10)], [(97, 97, 103, 103)], FRAME)
    assert leader((100, 100), place, (40, 10)) is None
    assert hypot(place[0] - 100, place[1] + 5 - 100) < 10


def test_a_point_at_the_edge_has_its_label_inside():
    for spot in ((0, 0), (500, 300), (0, 300), (500, 0)):
        (box,) = boxes(place_labels([spot], [(60, 10)], [], FRAME), [(60, 10)])
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= 500
        assert box[3] <= 300


def test_a_label_that_fits_nowhere_is_placed_all_the_same():
    assert place_labels([(5, 5)], [(900, 10)], [], FRAME) == [(-400, 5)]


def test_a_label_far_from_its_point_has_a_line_to_its_edge():
    assert leader((0, 0), (30, -5), (10, 10)) == ((0, 0), (30, 0))


def test_places_are_the_same_each_time():
    assert place_labels(*crowd(3), FRAME) == place_labels(*crowd(3), FRAME)


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_order_distance_and_range(seed):
    rng = random.Random(seed)
    wanted = [rng.uniform(0, 100) for _ in range(rng.randint(1, 9))]
    placed = spread(wanted, 10, 0, 100)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    ordered = [placed[i] for i in order]
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(ordered))
    assert min(placed) >= -1e-9
    assert max(placed) <= 100 + 1e-9


def test_spread_moves_no_more_than_it_must():
    assert spread([10, 50, 90], 10, 0, 100) == [10, 50, 90]
    assert spread([52, 50], 10, 0, 100) == [56, 46]
    assert spread([1, 0], 10, 0, 100) == [10, 0]
    assert spread([99, 100], 10, 0, 100) == [90, 100]
    assert spread([50, 50, 50], 60, 0, 100) == [0, 50, 100]


@pytest.mark.parametrize(
    ("labels", "prefix"),
    [
        (["VGG-16_P1", "VGG-16_P2", "VGG-16_PC"], "VGG-16_"),
        (["Simple FC, original", "Simple FC, Q", "Simple FC, PS"], "Simple FC, "),
        (["ResNet-50", "ResNet-101", "ResNet-152"], ""),
        (["1.0 Net-224", "1.0 Net-192", "1.0 Net-160"], ""),
        (["Net A", "Net B"], ""),
        (["Net A", "Net ", "Net B"], ""),
    ],
)
def test_what_labels_share_is_whole_words_that_say_something(labels, prefix):
    assert common_prefix(labels) == prefix
