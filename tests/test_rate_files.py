"""Success rates from a table or an evaluation's file, against what a tracker observes."""

import json

import numpy as np
import pytest
from trl import ScriptArguments

from trl_knapsack import KnapsackGRPOConfig, SuccessRateTracker
from trl_knapsack.evaluation import EvaluationResults, ProblemResult
from trl_knapsack.hub import find_success_state
from trl_knapsack.hub.states import write_success_state
from trl_knapsack.tracking import find_state


def observed(keys, successes, trials, tokens=None):
    """A tracker that saw it itself."""
    tracker = SuccessRateTracker()
    tracker.observe(keys, successes, trials, tokens=tokens)
    return tracker


def assert_same(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert found.pop("keys") == expected.pop("keys")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def loaded(path):
    tracker = SuccessRateTracker()
    tracker.load(find_success_state(str(path))[0])
    return tracker


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,successes,trials,note\neasy,4,4,x\nhard,1,4,\nnew,0,0,\n"),
        ("a.csv", "\ufeffid,c,n\r\neasy,4,4\r\nhard,1,4\r\nnew,0,0\r\n"),  # as Excel writes it
        ("a.TSV", "trials\tid\tsuccesses\n4\teasy\t4\n4\thard\t1\n0\tnew\t0\n"),
        ("a.csv", "id,success_rate,trials\neasy,1.0,4\nhard,0.25,4\nnew,0.5,0\n"),
        (
            "a.jsonl",
            '{"id": "easy", "n": 4, "c": 4}\n\n{"c": 1, "id": "hard", "n": 4}\n{"id": "new", "n": 0, "c": 0}\n',
        ),
    ],
)
def test_counts_are_one_visit_of_each_prompt(tmp_path, name, text):
    (tmp_path / name).write_text(text, newline="")
    found = loaded(tmp_path / name)
    assert_same(found, observed(["easy", "hard", "new"], [4, 1, 0], [4, 4, 0]))
    assert found.evidence(["new"]).visits == [0]  # never scored is not failed


def test_a_rate_alone_is_worth_eight_rollouts(tmp_path):
    (tmp_path / "rates.csv").write_text("id,success_rate\n7,0.25\n8,1\n")
    assert_same(loaded(tmp_path / "rates.csv"), observed(["7", "8"], [2, 8], [8, 8]))


def test_what_evaluate_writes_is_read(tmp_path):
    problems = [
        ProblemResult("a", (1.0, 0.0, 0.6), tokens=9),
        ProblemResult("b", (0.0, 0.0), tokens=4),
        ProblemResult("c", ()),
    ]
    EvaluationResults(problems[:2]).save(tmp_path / "with_tokens.jsonl")
    assert_same(loaded(tmp_path / "with_tokens.jsonl"), observed(["a", "b"], [2, 0], [3, 2], [9, 4]))
    EvaluationResults(problems[2:]).save(tmp_path / "unscored.jsonl")
    assert loaded(tmp_path / "unscored.jsonl").evidence(["c"]).visits == [0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,successes,trials\n", "has no rows; give one line for each prompt"),
        ("a.csv", "", "has no rows; give one line for each prompt"),
        ("a.csv", "prompt,rate\nx,1\n", "has the columns prompt, rate; it needs id, and either successes and trials"),
        ("a.csv", "id,successes\nx,1\n", "has the columns id, successes; it needs id, and either successes and trials"),
        ("a.csv", "id,success_rate\nx,0.5\ny,62.5\n", "Line 3 of {}: success_rate ('62.5') must be a number between 0 and 1"),
        ("a.csv", "id,success_rate\nx,nan\n", "success_rate ('nan') must be a number between 0 and 1"),
        ("a.csv", "id,success_rate\nx\n", "success_rate (None) must be a number between 0 and 1"),
        ("a.csv", "id,c,n\nx,5,4\n", "Line 2 of {}: successes (5) must not exceed trials (4)"),
        ("a.csv", "id,c,n\nx,1,1e12\n", "Line 2 of {}: trials ('1e12') must be a number at most 1e+11"),
        ("a.csv", "id,c,n\nx,-1,4\n", "Line 2 of {}: successes ('-1') must be a number at least 0"),
        ("a.csv", "id,c,n\nx,1,4\ny,1,4\nx,1,4\n", "Line 4 of {}: id 'x' is that of line 2, too; give each prompt one line"),
        ("a.csv", "id,c,n\n,1,4\n", "Line 2 of {}: id ('') must be text; give each prompt the value of your prompt_id_column"),
        ("a.csv", "id,c,n\n\x1b[31m,1,4\n\x1b[31m,1,4\n", "id '\\x1b[31m' is that of line 2, too"),
        ("a.csv", b"id,c,n\n\xff,1,4\n", "is no text in UTF-8 with a line for each prompt"),
        ("a.csv", 'id,c,n\n"' + "x" * 200_000 + '",1,4\n', "field larger than field limit"),
        ("a.jsonl", '{"id": "x", "n": 4, "c": 1}\nnot json\n', "Line 2 of {} is no JSON object (Expecting value"),
        ("a.jsonl", "[1]\n", "Line 1 of {} is no JSON object; it needs id"),
        ("a.jsonl", "[" * 100_000, "is no JSON object"),
        ("a.jsonl", '{"id": ["x"], "n": 4, "c": 1}\n', "Line 1 of {}: id (['x']) must be text"),
        ("a.jsonl", '{"id": "x", "n": 4, "c": 1}\n{"id": "y", "n": 4}\n', "Line 2 of {}: successes (None) must be a number"),
        ("a.jsonl", '{"id": "x", "completion_ids": []}\n', "has the columns id, completion_ids; it needs id, and either"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_sentence(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        loaded(path)
    said = str(error.value)
    assert message.format(path) in said and str(path) in said
    assert said.count("\n") == 0 and said.isprintable() and "remove" not in said and "delete" not in said


def test_a_table_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="data/rates.csv does not exist.*or a .csv or .jsonl file"):
        find_success_state("data/rates.csv")
    with pytest.raises(FileNotFoundError, match="There is no file rates.jsonl"):
        SuccessRateTracker().load("rates.jsonl")


def test_a_table_beside_a_run_is_not_taken_for_what_the_run_knows(tmp_path):
    """`knapsack_state.json` is of the state in its folder; and a folder's rates are in its state."""
    (tmp_path / "rates.csv").write_text("id,c,n\nx,1,4\n")
    (tmp_path / "knapsack_state.json").write_text(json.dumps({"of": "another file"}))
    assert find_success_state(str(tmp_path / "rates.csv")) == (str(tmp_path / "rates.csv"), None)
    with pytest.raises(FileNotFoundError, match="holds no knapsack_state.safetensors"):
        find_state(tmp_path)


def test_nothing_of_a_tracker_changes_when_the_table_is_wrong(tmp_path):
    tracker = observed(["a"], [1], [2])
    (tmp_path / "wrong.csv").write_text("id,c,n\nx,5,4\n")
    with pytest.raises(ValueError):
        tracker.load(tmp_path / "wrong.csv")
    assert_same(tracker, observed(["a"], [1], [2]))


def test_what_is_published_of_a_table_is_a_state(tmp_path):
    (tmp_path / "rates.csv").write_text("id,c,n\nx,1,4\n")
    (tmp_path / "folder").mkdir()
    config = KnapsackGRPOConfig("out", use_cpu=True, bf16=False, prompt_id_column="id")
    about = write_success_state(
        tmp_path / "folder", tmp_path / "rates.csv", config, [ScriptArguments(dataset_name="d/e")]
    )
    assert about.num_prompts == 1
    assert_same(loaded(tmp_path / "folder"), observed(["x"], [1], [4]))
    assert find_success_state(str(tmp_path / "folder"))[1] == about
