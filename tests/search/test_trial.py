"""The front of a search, its hypervolume, the rule of successive halving, and the bounds of the options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convrepro.errors import ConvReproError
from convrepro.search.finalists import spread
from convrepro.search.halving import is_rung, survives
from convrepro.search.search import Limits, limit
from convrepro.search.space import Cost
from convrepro.search.trial import front, hypervolume

pytestmark = pytest.mark.unit

POINTS = st.dictionaries(st.integers(0, 50), st.tuples(st.floats(0, 100), st.integers(1, 1000)), max_size=12)


@given(POINTS)
def test_nothing_dominates_the_front_and_the_front_dominates_the_rest(found):
    best = front(found)
    for number, (accuracy, macs) in found.items():
        dominating = [n for n in best if found[n][0] >= accuracy and found[n][1] <= macs]
        assert dominating
        if number in best:
            assert dominating == [number]
    assert [found[n][1] for n in best] == sorted(found[n][1] for n in best)


@given(POINTS)
def test_the_hypervolume_is_the_mean_of_the_best_accuracy_at_each_cost(found):
    best = [max((top1 for top1, macs in found.values() if macs <= cost), default=0.0) for cost in range(1000)]
    assert hypervolume(found, 1000) == pytest.approx(sum(best) / 1000 / 100)


def test_a_network_at_the_cost_of_the_dense_one_adds_no_hypervolume():
    assert hypervolume({0: (50.0, 500)}, 1000) == pytest.approx(0.25)
    assert hypervolume({0: (50.0, 500), 1: (99.0, 1000)}, 1000) == pytest.approx(0.25)


def test_rungs_are_powers_of_two_before_the_last_epoch():
    assert [epoch for epoch in range(1, 9) if is_rung(epoch, 8)] == [1, 2, 4]
    assert not is_rung(1, 1)


def test_the_best_half_goes_on_and_the_first_to_arrive_too():
    assert survives(10.0, [])
    assert survives(10.0, [5.0])
    assert not survives(5.0, [10.0])
    assert survives(20.0, [10.0, 30.0, 15.0])
    assert not survives(12.0, [10.0, 30.0, 15.0])


def test_finalists_are_spread_over_the_front():
    assert spread([4, 1, 7], 5) == [4, 1, 7]
    assert spread(list(range(9)), 3) == [0, 4, 8]
    assert spread(list(range(9)), 1) == [8]


def test_a_bound_is_a_share_up_to_one_and_a_number_above():
    assert limit("--max-macs", None, 1000, 100) is None
    assert limit("--max-macs", 0.4, 1000, 100) == 400
    assert limit("--max-macs", 1, 1000, 100) == 1000
    assert limit("--max-macs", 250, 1000, 100) == 250
    with pytest.raises(ConvReproError, match=r"--max-macs 0.05 is 50, which no network .*; the smallest has 100 \(0.1"):
        limit("--max-macs", 0.05, 1000, 100)
    for bad in (-0.4, 0):
        with pytest.raises(ConvReproError, match="must be above 0"):
            limit("--max-macs", bad, 1000, 100)


def test_the_excess_is_the_share_beyond_the_tighter_bound():
    assert Limits().excess(Cost(10, 10)) == 0
    assert Limits(macs=10).excess(Cost(10, 99)) == 0
    assert Limits(macs=10, params=100).excess(Cost(15, 300)) == pytest.approx(2)
