"""The bundled policy and problems, and the script that makes them."""

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


EXAMPLES = Path(__file__).parent.parent / "examples"


def _import_script():
    spec = importlib.util.spec_from_file_location("make_math_policy", EXAMPLES / "make_math_policy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make = _import_script()


@pytest.fixture(scope="module")
def problems():
    return load_dataset(str(EXAMPLES / "math_problems"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EXAMPLES / "math_policy")


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(EXAMPLES / "math_policy")


def _python_says(prompt: str) -> str:
    assert re.fullmatch(r"[-+*()0-9]+=", prompt)
    return str(eval(prompt[:-1]))


# --- Problems ---------------------------------------------------------------------------------------------------------


def test_every_solution_is_right(problems):
    for split in ("train", "test"):
        assert [_python_says(prompt) for prompt in problems[split]["prompt"]] == list(problems[split]["solution"])


def test_no_problem_occurs_twice(problems):
    for column in ("prompt", "id"):
        values = [*problems["train"][column], *problems["test"][column]]
        assert len(set(values)) == len(values)
    assert (len(problems["train"]), len(problems["test"])) == (1280, 500)
    assert set(problems["test"]["kind"]) == set(make.KINDS) - {"table"}


def test_the_script_reproduces_the_shipped_problems(problems):
    assert make.make_problems(seed=0) == {split: list(problems[split]) for split in ("train", "test")}
    assert make.make_problems(seed=1)["train"] != list(problems["train"])


@pytest.mark.parametrize("name", make.KINDS)
def test_a_careful_teacher_is_always_right(name):
    rng = random.Random(name)
    for _ in range(300):
        prompt, answer = make.KINDS[name].make(rng.randint, lambda: False)
        assert str(answer) == _python_says(prompt)


@pytest.mark.parametrize(
    ("kind", "operands", "prompt", "careless"),
    [
        ("add2", (37, 58), "37+58=", 85),  # 7 + 8 is 15, the 1 is lost; 3 + 5 is 8
        ("add2", (62, 46), "62+46=", 108),  # the leading digits are written down, not carried
        ("add3", (486, 957), "486+957=", 1333),  # 13 -> 3, 13 -> 3, 13
        ("sum3", (47, 8, 6), "47+8+6=", 41),  # 21 -> 1, 4
        ("sub2", (37, 52), "52-37=", 25),  # 7 - 2, 5 - 3
        ("sub3", (278, 503), "503-278=", 375),  # 8 - 3, 7 - 0, 5 - 2
        ("mul2", (27, 6), "27*6=", 122),  # 42 -> 2, 12
        ("mixed", (3, 4, 7), "3+4*7=", 49),  # (3 + 4) * 7
        ("paren", (6, 3, 4), "6*(3+4)=", 22),  # 6 * 3 + 4
    ],
)
def test_a_careless_teacher_errs_like_a_school_child(kind, operands, prompt, careless):
    numbers = iter(operands)
    assert make.KINDS[kind].make(lambda low, high: next(numbers), lambda: True) == (prompt, careless)


def test_warm_up_is_careful_first_and_never_shows_reserved_problems():
    reserved = {f"{a}+{b}=" for a in range(1, 100) for b in range(1, 50)}
    batches = list(make.warm_up_batches(64, steps=6, careless_from=3, reserved=reserved, seed=0))
    right = [sum(_python_says(prompt) == answer for prompt, answer in batch) for batch in batches]
    assert right[:3] == [64, 64, 64]
    assert all(16 < count < 60 for count in right[3:])
    assert not reserved & {prompt for batch in batches for prompt, _ in batch}


# --- Tokenizer and model ----------------------------------------------------------------------------------------------


def test_one_token_per_character_and_back(problems, tokenizer):
    texts = [row["prompt"] + row["solution"] for row in problems["test"]]
    token_ids = tokenizer(texts)["input_ids"]
    assert [len(ids) for ids in token_ids] == [len(text) for text in texts]
    assert tokenizer.batch_decode(token_ids) == texts
    assert {token for ids in token_ids for token in ids} == set(range(2, len(tokenizer)))
    assert max(map(len, problems["train"]["prompt"])) <= 8 and max(map(len, problems["train"]["solution"])) <= 4


def test_padding_is_on_the_left(tokenizer):
    batch = tokenizer(["1+1=", "10+10="], padding=True)
    pad = tokenizer.pad_token_id
    assert batch["input_ids"][0][:2] == [pad, pad] and batch["attention_mask"][0] == [0, 0, 1, 1, 1, 1]
    assert (pad, tokenizer.eos_token_id) == (0, 1)


def test_policy_is_a_small_qwen2_in_float32(policy):
    assert policy.config.model_type == "qwen2" and policy.dtype == torch.float32
    assert 1.0e6 < policy.num_parameters() < 1.3e6
    assert policy.config.hidden_size // policy.config.num_attention_heads == 32


def test_policy_answers_easy_prompts_and_stops(policy, tokenizer):
    batch = tokenizer(["7*8=", "21+34=", "88-25="], padding=True, return_tensors="pt")
    completions = policy.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(completions, skip_special_tokens=True) == ["56", "55", "63"]


# --- Success rates ----------------------------------------------------------------------------------------------------


def test_exact_rates_are_those_of_sampling(policy, tokenizer, problems):
    rows = [dict(row) for row in problems["train"].select(range(24))]
    rates = torch.tensor(make.success_rates(policy, tokenizer, rows))
    torch.manual_seed(0)
    samples = 256
    batch = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    completions = policy.generate(
        **batch, max_new_tokens=8, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=samples
    )[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    solved = torch.tensor([text == rows[i // samples]["solution"] for i, text in enumerate(texts)])
    frequencies = solved.view(-1, samples).float().mean(-1)
    assert torch.all((frequencies - rates).abs() <= 5 * (rates * (1 - rates) / samples).sqrt() + 0.01)


def test_most_prompts_are_solved_and_the_rest_is_hard(policy, tokenizer, problems):
    rates = torch.tensor(make.success_rates(policy, tokenizer, list(problems["train"])))
    assert 0.45 < (rates >= 0.85).float().mean() < 0.65
    assert 0.25 < (rates <= 0.15).float().mean() < 0.40
    assert ((rates > 0.01) & (rates <= 0.15)).float().mean() > 0.10  # hard, but exploring finds the answer
    assert (rates <= 0.001).float().mean() > 0.01  # hopeless
    for kind, low, high in [("table", 0.8, 1.0), ("sub2", 0.8, 1.0), ("add3", 0.2, 0.6), ("product", 0.0, 0.05)]:
        chosen = rates[[row["kind"] == kind for row in problems["train"]]]
        assert low <= chosen.mean() <= high, kind


# --- The script -------------------------------------------------------------------------------------------------------


def test_the_script_runs_end_to_end(monkeypatch, tmp_path, capsys):
    def run(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
        command = ["make_math_policy.py", "--output_dir", str(folder), "--steps", "4", "--batch_size", "16"]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        make.main()
        return AutoModelForCausalLM.from_pretrained(folder / "math_policy").state_dict()

    first, again, other = run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "c", "--seed", "1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert load_dataset(str(tmp_path / "a" / "math_problems"))["train"].num_rows == 1280
    assert AutoTokenizer.from_pretrained(tmp_path / "a" / "math_policy").decode([2, 3]) == "01"
    table = capsys.readouterr().out
    assert "| test | all | 500 |" in table and table.splitlines()[0] in (
        tmp_path / "a" / "math_policy" / "README.md"
    ).read_text(encoding="utf-8")
