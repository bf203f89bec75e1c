"""What ranks make of the cores that each of them may use."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sglang_ascend_moe.exchange.control.cores import OWN_CORE_SPIN_NS, core_shares, spin_ns_of


@pytest.mark.parametrize(
    ("cores", "shares", "own"),
    [
        ([[0], [1]], [1, 1], True),
        ([[0, 1], [0, 1]], [1, 1], True),
        ([[0, 1, 2], [0, 1, 2]], [Fraction(3, 2), Fraction(3, 2)], True),
        ([[0], [0]], [Fraction(1, 2), Fraction(1, 2)], False),
        ([[0, 1]] * 4, [Fraction(1, 2)] * 4, False),
        ([[0], [0, 1, 2]], [Fraction(1, 2), Fraction(5, 2)], False),
        ([[0, 0, 1]], [2], True),
    ],
    ids=["pinned", "unpinned", "with one to spare", "on one core", "two to a core", "one without", "named twice"],
)
def test_waits_keep_a_core_only_where_each_rank_has_one(cores: list, shares: list, own: bool):
    assert core_shares(cores) == shares
    assert spin_ns_of(cores) == (OWN_CORE_SPIN_NS if own else 0)
