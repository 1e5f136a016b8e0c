import numpy as np
import pytest

from trl_knapsack.allocation import (
    BetaBeliefs,
    Evidence,
    MixedGroupValue,
    PaperRule,
    WeightedSum,
    allocate,
    difficulty,
    expected_values,
    explain,
)


RATES = np.array([0.0, 0.02, 0.1, 0.4, 0.5, 0.9, 1.0, 1.0])


def test_rows_add_up():
    allocation = allocate(RATES, 64)
    explanation = explain(allocation, RATES)
    rows = explanation.rows()
    assert [(row["from"], row["to"]) for row in rows] == [
        (0.0, 0.0), (0.0, 0.05), (0.05, 0.1), (0.2, 0.4), (0.4, 0.6), (0.9, 0.95), (1.0, 1.0),
    ]  # fmt: skip
    assert sum(row["prompts"] for row in rows) == 8
    assert sum(row["rollouts"] for row in rows) == 64
    assert sum(row["value"] for row in rows) == pytest.approx(1)


def test_totals_are_those_of_the_rules():
    allocation = allocate(RATES, 64)
    totals = explain(allocation, RATES).totals
    assert totals["allocation"] == pytest.approx(allocation.value) == totals["bound"]
    assert totals["uniform"] == pytest.approx(expected_values(RATES, [8] * 8).sum())
    assert totals["uniform"] < totals["paper"] <= totals["allocation"]


@pytest.mark.parametrize("value", ["variance", "root", MixedGroupValue(2, 1)])
def test_the_papers_rule_shares_out_by_the_same_value(value):
    """Else a run of it in these units would be set beside one that optimises something else."""
    rates = np.array([0.05, 0.1, 0.4, 0.5, 0.8, 0.9])
    one = np.ones(6)
    seen = Evidence(tuple("abcdef"), 1 + rates, 2 - rates, rates, one.astype(int), one)
    allocation = PaperRule(value)(seen, 48, 2, 128)
    assert allocation.counts.tolist() != PaperRule()(seen, 48, 2, 128).counts.tolist()
    totals = explain(allocation, rates, value=value).totals
    assert totals["paper"] == pytest.approx(totals["allocation"], rel=1e-12)


def test_a_value_of_the_users_own_is_compared_with_the_papers_rule_as_published():
    """Such a value is made for these prompts in this order, and the rule shares out by knapsack among some of them."""
    value = WeightedSum([(1.0, np.arange(1.0, 9.0))])
    totals = explain(allocate(RATES, 64, value=value), RATES, value=value).totals
    counts = PaperRule().share(RATES, 64, np.full(8, 2), np.full(8, 128))
    assert totals["paper"] == pytest.approx(expected_values(RATES, counts, value).sum(), rel=1e-12)


def test_gains_surround_the_shadow_price():
    beliefs = BetaBeliefs(0.5 + 8 * RATES, 0.5 + 8 * (1 - RATES))
    allocation = allocate(beliefs, 64)
    explanation = explain(allocation, beliefs)
    assert explanation.next_gains.max() == pytest.approx(allocation.shadow_price)
    assert explanation.last_gains[allocation.counts > 2].min() >= allocation.shadow_price


def test_rows_close_on_the_side_of_the_papers_classes():
    # 0; (0, 0.05]; (0.05, 0.1]; (0.1, 0.2]; (0.2, 0.4]; (0.4, 0.6); [0.6, 0.8); [0.8, 0.9); [0.9, 0.95); [0.95, 1); 1
    edges = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0])
    rows = explain(allocate(edges, 80), edges).rows()
    assert [(row["from"], row["to"]) for row in rows] == [
        (0.0, 0.0), (0.0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4),
        (0.6, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.0), (1.0, 1.0),
    ]  # fmt: skip
    assert [row["prompts"] for row in rows] == [1] * 10


def test_rows_split_the_papers_classes():
    rates = np.linspace(0, 1, 1001)
    explanation = explain(allocate(rates, 8008), rates)
    prompts = np.zeros(5, int)
    for row in explanation.rows():
        prompts[difficulty((row["from"] + row["to"]) / 2)] += row["prompts"]
    assert prompts.tolist() == np.bincount(difficulty(rates)).tolist()


def test_shown_without_print():
    explanation = explain(allocate(RATES, 64), RATES)
    assert repr(explanation) == str(explanation)
    page = explanation._repr_html_()
    assert page.count("<tr>") == 1 + len(explanation.rows()) and "<th>last gain</th>" in page
    assert str(explanation).splitlines()[-1].split(";")[0] in page.replace("&#x27;", "'")


def test_text():
    text = str(explain(allocate(RATES, 64), RATES))
    assert text.splitlines()[0].startswith("success rate   prompts  rollouts")
    assert text.splitlines()[-1].startswith("value 0.3") and "100.0% of the bound" in text


def test_plot_shows_every_prompt(tmp_path):
    pytest.importorskip("matplotlib")
    figure = explain(allocate(RATES, 64), RATES).plot(tmp_path / "allocation.png")
    counts = figure.axes[0].collections[0].get_offsets()
    assert counts[:, 0].tolist() == np.unique(RATES).tolist()  # the two prompts at 1 are one dot
    assert counts[:, 1].sum() == 64 - allocate(RATES, 64).counts[-1]
    assert (tmp_path / "allocation.png").stat().st_size > 10_000
