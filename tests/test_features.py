"""Difficulty as datasets have it: every notation of one rate is the same feature, and what is unknown stays unknown."""

import json
import math
import statistics

import numpy as np
import pytest

from trl_knapsack.errors import InvalidInputError
from trl_knapsack.tracking.features import DifficultyColumns


EIGHTHS = [5, 0, 8, 1, 2, 5]


def standardised(values):
    """In plain Python; None is unknown."""
    known = [value for value in values if value is not None]
    mean, spread = statistics.fmean(known), statistics.pstdev(known)
    return [math.nan if value is None else (value - mean) / spread for value in values]


def features(values, column="difficulty"):
    rows = [{"prompt": "2+2=", column: value} for value in values]
    return DifficultyColumns([column], rows).features(rows)


@pytest.mark.parametrize(
    "write",
    [
        lambda k: k / 8,
        lambda k: 100 * k / 8,
        lambda k: f"{k}/8",
        lambda k: f" {k} / 8 ",
        lambda k: f"{100 * k / 8}%",
        lambda k: f"{100 * k / 8:g} %",
        lambda k: str(k / 8),
        lambda k: np.float32(k / 8),
        lambda k: k,
        lambda k: f"{k}",
        lambda k: f"{k / 8:e}",
    ],
    ids=["rate", "per cent", "5/8", "spaces", "62.5%", "62.5 %", "text", "float32", "count", "count as text", "1e-1"],
)
def test_a_rate_is_the_same_however_it_is_written(write):
    np.testing.assert_allclose(features([write(k) for k in EIGHTHS]), np.array([standardised(EIGHTHS)]).T, atol=1e-12)


@pytest.mark.parametrize(
    "values", [["5/8", 0.0, "100 %", 12.5 / 100], ["5/8", 0, "100 %", 12.5], ["5/8", "0", "100%", "12.5"]]
)
def test_notations_beside_each_other(values):
    np.testing.assert_allclose(features(values)[:, 0], standardised([0.625, 0.0, 1.0, 0.125]), atol=1e-12)


@pytest.mark.parametrize("unknown", [None, math.nan, "", "n/a", "N/A", "None", "NaN", " - ", math.inf, "3/0", []])
def test_unknown_is_unknown(unknown):
    expected = standardised([0.25, None, 1.0, 0.5])
    np.testing.assert_allclose(features([0.25, unknown, 1.0, 0.5])[:, 0], expected, atol=1e-12)


def test_a_stray_word_in_a_column_of_numbers_is_unknown():
    np.testing.assert_allclose(features(["3", "7", "hard", "1"])[:, 0], standardised([3, 7, None, 1]), atol=1e-12)


def test_a_topic_is_a_feature_for_each_value():
    rows = [{"source": source} for source in ("gsm8k", "aime", "gsm8k", None, "gsm8k")]
    columns = DifficultyColumns(["source"], rows)
    assert columns.names == ("source=gsm8k", "source=aime")
    expected = np.array(
        [standardised([int(row["source"] == name) for row in rows if row["source"]]) for name in ("gsm8k", "aime")]
    ).T
    given = columns.features(rows)
    np.testing.assert_allclose(given[[0, 1, 2, 4]], expected, atol=1e-12)
    assert np.isnan(given[3]).all()
    assert np.isnan(columns.features([{"source": "olympiads"}])).all()  # never seen: unknown


def test_only_the_most_frequent_values_of_a_topic_have_a_feature():
    rows = [{"topic": f"topic {k}"} for k in range(60) for _ in range(60 - k)]
    names = DifficultyColumns(["topic"], rows).names
    assert names == tuple(f"topic=topic {k}" for k in range(24))


def test_several_columns_nested_ones_among_them():
    rows = [
        {"extra_info": {"model_difficulty": 0.25, "of": {"qwen": "1/4"}}, "a.b": 3, "level": "easy"},
        {"extra_info": {"model_difficulty": 0.75, "of": None}, "a.b": 1, "level": "hard"},
        {"extra_info": None, "a.b": 2, "level": "hard"},
        {"extra_info": {"model_difficulty": None, "of": {"qwen": "3/4"}}, "a.b": 2, "level": "hard"},
    ]
    columns = DifficultyColumns(["extra_info.model_difficulty", "extra_info.of.qwen", "a.b", "level"], rows)
    assert columns.names == (
        "extra_info.model_difficulty",
        "extra_info.of.qwen",
        "a.b",
        "level=hard",
        "level=easy",
    )
    assert len(columns) == 5
    expected = np.array(
        [
            standardised([0.25, 0.75, None, None]),
            standardised([0.25, None, None, 0.75]),
            standardised([3, 1, 2, 2]),
            standardised([0, 1, 1, 1]),
            standardised([1, 0, 0, 0]),
        ]
    ).T
    np.testing.assert_allclose(columns.features(rows), expected, atol=1e-12)
    assert columns.features([]).shape == (0, 5)


def test_read_as_the_first_rows_were():
    """A later batch is on the scale of the rows that decided, and the state says how, also through JSON."""
    rows = [{"solved": "2/8", "topic": "algebra"}, {"solved": 75, "topic": "number theory"}]
    columns = DifficultyColumns(["solved", "topic"], rows)
    later = [{"solved": 100, "topic": "algebra"}, {"solved": "n/a", "topic": None}, {"solved": "1/2", "topic": "sets"}]
    given = columns.features(later)
    assert given[:, 0].tolist()[0] == pytest.approx((1.0 - 0.5) / 0.25)
    assert given[2, 0] == pytest.approx(0.0)
    again = DifficultyColumns.from_state_dict(json.loads(json.dumps(columns.state_dict())))
    np.testing.assert_array_equal(again.features(later), given)
    assert again.names == columns.names and repr(again) == repr(columns)
    assert repr(columns) == "DifficultyColumns(solved, topic=algebra, topic=number theory)"


def rows_of(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (
            ["rate"],
            rows_of(solve_rate=[1, 2], prompt=["a", "b"]),
            "'rate' does not exist: the dataset has 'prompt', 'so",
        ),
        (["info.rate"], rows_of(info=[{"level": 1}]), "'info.rate' does not exist: 'info' has 'level'; name one of"),
        (["level.rate"], rows_of(level=[1, 2]), "'level' holds a int, no fields"),
        (["rate"], rows_of(rate=[None, "n/a"]), "holds neither numbers nor texts, but for example None; name another"),
        (["rate"], rows_of(rate=[[1], [2]]), "holds neither numbers nor texts"),
        (["rate"], rows_of(rate=[0.5, 0.5, None]), "is 0.5 in every row, which tells no prompt from another"),
        (["topic"], rows_of(topic=["algebra", "algebra"]), "is 'algebra' in every row, which tells no prompt"),
        (["rate"], [], "can't be read from no rows"),
        ("rate", rows_of(rate=[1, 2]), "must be a list of column names"),
        ([], rows_of(rate=[1, 2]), "must be a list of column names"),
        (["rate", "rate"], rows_of(rate=[1, 2]), "names a column twice"),
    ],
)
def test_columns_that_can_not_serve(columns, rows, message):
    with pytest.raises(InvalidInputError) as error:
        DifficultyColumns(columns, rows)
    assert message in str(error.value)
    assert str(error.value).count(".") - str(error.value).count("0.5") - str(error.value).count("o.rate") <= 2


def test_a_column_that_a_later_row_lacks_is_named():
    columns = DifficultyColumns(["rate"], rows_of(rate=[1, 2]))
    with pytest.raises(InvalidInputError, match="'rate' does not exist: the dataset has 'prompt'"):
        columns.features([{"prompt": "2+2="}])


@pytest.mark.parametrize(
    "reader",
    [
        None,
        {},
        {"kind": "magic", "scales": {"rate": [0, 1]}},
        {"kind": "number", "scales": {}},
        {"kind": "number", "scales": {"rate": [0, 0]}},
        {"kind": "number", "scales": {"rate": [math.nan, 1]}},
        {"kind": "number", "scales": {"rate": [1]}},
    ],
)
def test_a_state_that_is_none(reader):
    with pytest.raises(InvalidInputError, match="the state of difficulty column 'rate'"):
        DifficultyColumns.from_state_dict({"rate": reader})
