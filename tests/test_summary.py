"""What stands out in a run, by hand, and what is believed of its prompts, against the tracker itself."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from histories import write

from trl_knapsack import Allocation, RolloutHistory, RolloutRecord, SuccessRateTracker
from trl_knapsack.reporting.summary import closing_rows, of_history, of_tracker, prompt_text, tracker_of
from trl_knapsack.tracking import HISTORY_FILE
from trl_knapsack.tracking.history import HistoryWriter


def tracked_run(path, batches, prior, decay) -> tuple[RolloutHistory, SuccessRateTracker]:
    """Records of batches, each a list of (key, successes, scored), with what a tracker believed before each of them."""
    tracker, writer = SuccessRateTracker(prior, decay), HistoryWriter(path / HISTORY_FILE)
    for step, batch in enumerate(batches, 1):
        keys, won, tried = [key for key, _, _ in batch], *np.array([(w, n) for _, w, n in batch], float).T
        record = RolloutRecord(
            evidence=tracker.evidence(keys),
            allocation=Allocation(np.maximum(tried.astype(int), 2)),
            solver_seconds=0.0,
            successes=won,
            trials=tried,
            tokens=10 * tried,
            mean_reward=np.divide(won, tried, out=np.full(len(won), np.nan), where=tried > 0),
            mixed=(won > 0) & (won < tried),
            rank_imbalance=1.0,
        )
        writer.append(record, step, step / 4, "posterior")
        tracker.observe(keys, won, tried)
    return RolloutHistory.load(path), tracker


@pytest.mark.parametrize(
    ("prior", "decay"), [((1.0, 1.0), 0.85), ((0.5, 0.5), 1.0), ((1.0, 9.0), 0.5), ((2.0, 0.25), 0.0)]
)
def test_what_is_believed_is_what_the_tracker_believes(tmp_path, prior, decay):
    """Neither prior nor decay is in the records; prompts come twice in a batch, unscored, once, or not yet scored."""
    rng = np.random.default_rng(0)
    batches = [[("late", 0, 0), ("never scored", 0, 0), ("once", 3, 4), ("twice", 8, 8)], [("twice", 0, 8)]]
    for _ in range(12):
        tried = rng.integers(0, 20, 6)
        batches.append(
            [(f"p{i}", int(rng.binomial(n, 0.3)), int(n)) for i, n in zip(rng.choice(5, 6), tried, strict=True)]
        )
    history, tracker = tracked_run(tmp_path, [*batches, [("late", 1, 2)]], prior, decay)
    expected = tracker.evidence(history.keys).beliefs
    found = tracker_of(history).evidence(history.keys).beliefs
    np.testing.assert_allclose(found.alpha, expected.alpha, atol=1e-4)
    np.testing.assert_allclose(found.beta, expected.beta, atol=1e-4)
    np.testing.assert_allclose(of_history(history).believed_rate, expected.mean, atol=1e-5)


def test_eight_of_eight_then_none_of_eight(tmp_path):
    """The decay can't be seen in two visits, and is the default: what was 0.50 when it was left out is 0.464."""
    history, tracker = tracked_run(tmp_path, [[("a", 8, 8)], [("a", 0, 8)]], (1.0, 1.0), 0.85)
    assert of_history(history).believed_rate == pytest.approx(tracker.evidence(["a"]).beliefs.mean)
    assert of_history(history).believed_rate == pytest.approx((1 + 0.85 * 8) / (2 + 0.85 * 8 + 8))


def test_a_run_that_began_with_a_state_knows_no_first_visit(tmp_path):
    history, tracker = tracked_run(tmp_path, [[("a", 8, 8)], [("a", 2, 8)], [("a", 4, 8)]], (1.0, 1.0), 0.6)
    lines = (tmp_path / HISTORY_FILE).read_text().splitlines(keepends=True)
    (tmp_path / HISTORY_FILE).write_text("".join(lines[1:]))
    assert of_history(RolloutHistory.load(tmp_path)).believed_rate == pytest.approx(
        tracker.evidence(["a"]).beliefs.mean
    )


def test_what_stands_out_by_hand(tmp_path):
    batches = [
        {"stuck": (0, 20), "cheap": (0, 2), "learnt": (0, 8), "hard": (1, 8), "solved": (8, 8), "dear": (4, 30)},
        {"stuck": (0, 20), "cheap": (0, 2), "learnt": (6, 8), "hard": (0, 8), "solved": (8, 8), "dear": (4, 30)},
        {"learnt": (8, 8), "hard": (1, 8)},
    ]
    summary = of_history(write(tmp_path, batches))
    kinds = ("stuck", "hardest", "improved", "most_rollouts", "most_tokens")
    found = {kind: [summary.keys[i] for i in summary.top(kind, 3)] for kind in kinds}
    assert found == {
        "stuck": ["stuck"],  # "cheap" was tried only four times
        "hardest": ["stuck", "cheap", "hard"],  # (0.5 + successes) / (1 + scored): 0.012, and 0.1 twice
        "improved": ["learnt", "hard"],  # of three visits, the last against the others
        "most_rollouts": ["dear", "stuck", "learnt"],
        "most_tokens": ["dear", "stuck", "learnt"],
    }
    sums = defaultdict(lambda: np.zeros(2, int))
    for batch in batches:
        for key, visit in batch.items():
            sums[key] += visit
    assert [(s, n) for s, n in zip(summary.successes, summary.scored, strict=True)] == [
        tuple(sums[k]) for k in summary.keys
    ]
    assert summary.title("stuck") == "Stuck: 32 scored rollouts or more, never a success"
    assert repr(summary) == "Summary(6 prompts, 168 rollouts, 1 stuck)"


def test_a_run_in_which_nothing_was_scored(tmp_path):
    history, _ = tracked_run(tmp_path, [[("a", 0, 0), ("b", 0, 0)]], (1.0, 3.0), 0.85)
    summary = of_history(history)
    assert summary.believed_rate.tolist() == [0.25, 0.25]
    assert not len(summary.top("hardest", 5)) and not summary.transitions.any() and summary.classes().sum() == 0


def test_a_state_says_the_same_as_the_records_where_nothing_ages(tmp_path):
    history, tracker = tracked_run(
        tmp_path, [[("a", 1, 8), ("b", 0, 40)], [("a", 0, 4)], [("a", 3, 4)]], (1.0, 1.0), 1.0
    )
    records, state = of_history(history), of_tracker(tracker)
    for name in ("keys", "believed_rate", "successes", "scored", "stuck", "visits", "last_rate"):
        assert list(getattr(records, name)) == list(getattr(state, name)), name


def test_the_text_of_a_prompt():
    assert prompt_text("2 + 2?") == "2 + 2?"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image"}]}]
    assert prompt_text(messages) == "Be brief.\n[not only text]"


@pytest.mark.parametrize(
    ("batches", "allocation", "share", "sentence"),
    [
        # 6 of 20 rollouts are at a prompt that was scored before
        ([{"a": (1, 4), "b": (0, 4)}, {"a": (1, 6), "c": (2, 6)}], "posterior", 0.3, "30.0% of the rollouts were decided by"),
        ([{"a": (1, 4), "b": (0, 4)}, {"c": (1, 4), "d": (2, 4)}], "posterior", 0, "equal: 4 generations of each prompt, because nothing was known of a prompt before its visit; set look_generations"),
        ([{"a": (1, 4), "b": (0, 4)}, {"a": (1, 4), "b": (2, 4)}], "posterior", 0.5, "equal: 4 generations of each prompt, although prompts were known; see that min_generations and max_generations leave room."),
        ([{"a": (1, 4)}, {"b": (1, 4)}, {"a": (1, 4)}], "posterior", 1 / 3, "All counts were equal: 4 generations of each prompt, because each generation batch held one prompt; raise the batch size, or set allocation_window."),
        ([{"a": (1, 4), "b": (0, 4)}, {"a": (1, 4), "b": (2, 4)}], "uniform", 0, "All counts were equal: 4 generations of each prompt."),
    ],
)  # fmt: skip
def test_what_knowledge_decided(tmp_path, batches, allocation, share, sentence):
    history = write(tmp_path, batches)
    history = replace(history, allocation=np.full(len(history), allocation))
    summary = of_history(history)
    assert summary.known_share == pytest.approx(share)
    assert sentence in summary.allocation_sentence()
    assert (summary.equal_counts is None) == ("equal" not in sentence)


def test_a_state_does_not_tell_what_knowledge_decided():
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [4])
    assert of_tracker(tracker).allocation_sentence() is None


def logs_of(least, largest, known):
    names = ("generations/min", "generations/max", "known_rollouts")
    return [
        {f"knapsack/{name}": value for name, value in zip(names, row, strict=True)}
        for row in zip(least, largest, known, strict=True)
    ]


def test_the_closing_rows():
    rows = dict(closing_rows("posterior", logs_of([8, 2], [8, 30], [0.0, 1.0]), 8))
    assert rows == {
        "largest budget": "30 generations of one prompt, 8 on average",
        "decided by knowledge": "50% of the rollouts",
    }
    rows = dict(closing_rows("posterior", logs_of([8, 8], [8, 8], [0.0, 0.0]), 8))
    assert rows["decided by knowledge"] == (
        "0% of the rollouts; all counts were equal, as nothing was known: set look_generations or difficulty_columns, "
        "give success_state_path, or train for more epochs"
    )
    rows = dict(closing_rows("filter", logs_of([8, 8], [8, 8], [0.0, 1.0]), 8))
    assert rows["decided by knowledge"] == "50% of the rollouts; all counts were equal"
    assert list(dict(closing_rows("uniform", logs_of([8], [8], [1.0]), 8))) == ["largest budget"]
