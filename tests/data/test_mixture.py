"""Shares of an epoch, against fractions worked out by hand and by brute force."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.data.mixture import Joined, described, rows_by_size, rows_by_weight
from tuninglab.data.orders import MixedOrder
from tuninglab.data.sources import Records


def test_three_to_one_is_exact():
    assert rows_by_weight([3, 1], 400) == [300, 100]
    # 2/3 of 10 are 6.67: the larger rest gets the row that is left.
    assert rows_by_weight([2, 1], 10) == [7, 3]
    assert rows_by_weight([1, 1, 1], 10) == [4, 3, 3]


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    st.integers(1, 10_000),
)
def test_rows_by_weight_sum_up_and_are_off_by_less_than_one(weights, rows):
    counts = rows_by_weight(weights, rows)
    assert sum(counts) == rows
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - Fraction(rows * weight, sum(weights))) < 1


def test_sizes_repeats_and_temperature():
    assert rows_by_size([10, 4], [1, 1]) == [10, 4]
    assert rows_by_size([10, 4], [1, 2.5]) == [10, 10]
    # The square roots of 100 and 4 are as 10 to 2, so of 104 rows 86.67 and 17.33.
    assert rows_by_size([100, 4], [1, 1], temperature=2) == [87, 17]
    assert rows_by_size([10, 30], [1, 1], rows=8) == [2, 6]


def test_laid_end_to_end():
    joined = Joined(["a", "b", "c"], [Records(list("xy")), Records([]), Records(list("z"))])
    assert len(joined) == 3 and list(joined) == list("xyz")
    assert joined[-1] == "z" and joined[1:] == ["y", "z"]
    with pytest.raises(IndexError):
        joined[3]


def test_what_is_said_of_a_mixture():
    sources = [Records(list(range(30))), Records(list(range(2)))]
    lines = described(Joined(["big", "small"], sources, [30, 10]))
    assert lines[0] == "big: 30 rows, 75.0% of an epoch, 1.00 passes"
    assert lines[1].startswith("small: 10 rows, 25.0% of an epoch, 5.00 passes (each row many")


def test_fingerprints_tell_shares_and_sources_apart():
    class Named(Records):
        @property
        def fingerprint(self):
            return str(self.samples)

        content = fingerprint

    def mixed(first, counts):
        return Joined(["a", "b"], [Named(first), Named([1])], counts).content

    prints = {mixed([0], [1, 1]), mixed([0], [2, 1]), mixed([2], [1, 1])}
    assert len(prints) == 3


def test_over_epochs_no_row_of_a_set_is_seen_twice_more_often_than_another():
    order = MixedOrder([7, 3], [6, 2])
    seen = Counter(row for epoch in range(5) for row in order.rows(0, epoch).tolist())
    assert sum(seen[row] for row in range(7)) == 30 and sum(seen[7 + row] for row in range(3)) == 10
    for rows in (range(7), range(7, 10)):
        often = [seen[row] for row in rows]
        assert max(often) - min(often) <= 1
