"""Records of arrays: equal or not, short, and a table in a notebook."""

import numpy as np
import pytest

from trl_knapsack.allocation import Allocation, BetaBeliefs, Evidence, PosteriorRule, WeightedSum, allocate, explain


def evidence(rate=0.5):
    one = np.ones(300)
    return Evidence(
        tuple(f"p{i}" for i in range(300)), one, one, np.full(300, rate), one.astype(int), np.full(300, np.nan)
    )


MAKE = {
    "Allocation": (lambda: allocate([0.1, 0.5], 16), lambda: allocate([0.1, 0.5], 17)),
    "Allocation without a value": (lambda: Allocation([2, 3]), lambda: Allocation([3, 2])),
    "BetaBeliefs": (lambda: BetaBeliefs([1, 2], [3, 4]), lambda: BetaBeliefs([1, 2], [3, 5])),
    "beliefs of another size": (lambda: BetaBeliefs([1, 2], [3, 4]), lambda: BetaBeliefs([1], [3])),
    "Evidence": (evidence, lambda: evidence(0.6)),
    "WeightedSum": (
        lambda: WeightedSum([(1.0, "knapsack"), (2.0, [1, 2])]),
        lambda: WeightedSum([(1.0, "knapsack"), (2.0, [1, 3])]),
    ),
    "a rule": (
        lambda: PosteriorRule(WeightedSum([(1.0, [1, 2])])),
        lambda: PosteriorRule(WeightedSum([(1.0, [2, 2])])),
    ),
    "Explanation": (
        lambda: explain(allocate([0.1, 0.5], 16), [0.1, 0.5]),
        lambda: explain(allocate([0.1, 0.5], 16), [0.1, 0.5], value="variance"),
    ),
}


@pytest.mark.parametrize("make, other", MAKE.values(), ids=MAKE)
def test_equal_if_all_fields_are(make, other):
    assert make() == make() and not make() != make()
    assert make() != other() and not make() == other()
    assert make() != "something else"


@pytest.mark.parametrize("make, other", MAKE.values(), ids=MAKE)
def test_reprs_are_short(make, other):
    assert max(map(len, repr(make()).splitlines())) < 400  # a wall of 300 numbers would be longer


def test_repr_of_an_allocation():
    # what is shown of many counts: the first and the last three, and how many there are
    assert repr(Allocation(range(2, 100), 1.5, 0.25, 1.5, "exact")) == (
        "Allocation(counts=[2, 3, 4, ..., 97, 98, 99] (98), value=1.5, shadow_price=0.25, upper_bound=1.5, "
        "solver='exact', cost=None, cost_price=0)"
    )


def test_a_table_in_a_notebook():
    page = Allocation([2, 4], value=0.5, solver="<mine>")._repr_html_()
    cells = ["2", "6", "2", "3.0", "4", "0.5", "nan", "inf", "&lt;mine&gt;"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page
