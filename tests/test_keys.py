import datetime
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from trl_knapsack.tracking import prompt_key


def test_every_difference_in_content_is_another_key():
    rows = [
        {"prompt": "1+1="},
        {"prompt": "1+1= "},
        {"prompt": "1+1=", "solution": "2"},
        {"prompt": "1+1=", "solution": 2},
        {"prompt": "1+1=", "solution": 2.0},
        {"prompt": "1+1=", "solution": True},
        {"prompt": "1+1=", "solution": None},
        {"prompt": "1+1=", "solution": b"2"},
        {"prompt": "1+1=", "solution": ["2"]},
        {"prompt": "1+1=", "solution": [["2"]]},
        {"prompt": "1+1=", "solution": ["2", ""]},
        {"prompt": "1+1=", "solution": {"2": None}},
        {"prompt": "1+1=", "solution": {"2": None, "3": 1}},
        {"prompt": "1+1=", "solution": {"2": 1, "3": None}},
        {"prompt": [{"role": "user", "content": "1+1="}]},
        {"prompt": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": ""}]},
        {"prompt": "1+1=", "x": np.zeros(2)},
        {"prompt": "1+1=", "x": np.zeros((2, 1))},
        {"prompt": "1+1=", "x": np.zeros(2, dtype=np.int64)},
        {"prompt": "1+1=", "x": np.array(["a", None], dtype=object)},
        {"prompt": "1+1=", "x": np.array(["b", None], dtype=object)},
        {"prompt": "1+1=", "x": datetime.date(2026, 1, 1)},
    ]
    keys = [prompt_key(row) for row in rows]
    assert len(set(keys)) == len(rows)

    def reverse(value):  # the order of columns and of fields does not matter
        return {k: reverse(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    assert keys == [prompt_key(reverse(row)) for row in rows]


def test_tensors_count_by_content():
    assert prompt_key({"x": torch.arange(3)}) == prompt_key({"x": torch.arange(3)})
    assert prompt_key({"x": torch.arange(3)}) != prompt_key({"x": torch.arange(4)})


def test_images_count_by_their_pixels():
    pixels = [np.full((4, 4, 3), value, dtype=np.uint8) for value in (0, 0, 9)]
    dataset = Dataset.from_dict({"image": pixels}).cast_column("image", Image())
    same, also, other = (prompt_key(dataset[i]) for i in range(3))
    assert same == also != other


def test_same_key_in_another_process():
    row = {"prompt": [{"role": "user", "content": "π"}], "solution": "3.14", "tags": ["a"]}
    code = f"from trl_knapsack.tracking.keys import prompt_key; print(prompt_key({row!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == prompt_key(row)


def test_named_column():
    assert prompt_key({"prompt": "a", "id": 7}, "id") == prompt_key({"prompt": "b", "id": 7}, "id") == "7"
    for row in ({"prompt": "a"}, {"prompt": "a", "id": None}):
        with pytest.raises(ValueError, match="prompt_id_column 'id' has no value"):
            prompt_key(row, "id")


def test_content_without_a_stable_form_is_refused():
    with pytest.raises(ValueError, match="'decoder' holds a object.*prompt_id_column"):
        prompt_key({"prompt": "a", "decoder": object()})
