"""The example scripts, as a stranger runs them: a tiny model and dataset in folders, a few steps, what it left behind."""

import ast
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import tiny_chat
from datasets import Dataset, Image
from transformers import AutoTokenizer


EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = [
    *("--per_device_train_batch_size", "16", "--num_generations", "4", "--max_completion_length", "12"),
    *("--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"),
    *("--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "true"),
]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script in this process; returns the trainer's log, one entry a step."""

    def run(name: str, *arguments: str) -> list[dict]:
        script, out = EXAMPLES / f"{name}.py", tmp_path / "out"
        monkeypatch.setattr(sys, "argv", [str(script), *TINY, "--output_dir", str(out), *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(script), run_name="__main__")
        assert (out / "model.safetensors").is_file() or (out / "adapter_model.safetensors").is_file()
        log = json.loads((out / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in log if "reward" in entry]

    return run


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The tiny chat model, which calls the calculator by `!` and a digit: calculate("3")."""
    path = tiny_chat.save_model(tmp_path_factory.mktemp("chat"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    call = tokenizer.response_template["fields"]["tool_calls"]["transform"]["function"]
    call["name"], call["arguments"] = "calculate", {"expression": "{digit}"}
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return tiny_chat.save_vlm(tmp_path_factory.mktemp("vlm"))


def folder(dataset: Dataset, path: Path) -> str:
    path.mkdir()
    dataset.to_parquet(path / "train.parquet")
    return str(path)


@pytest.mark.slow
def test_train_code(run, chat_model):
    log = run("train_code", "--model_name_or_path", chat_model)
    assert [entry["rewards/tests_passed/mean"] for entry in log] == [0, 0, 0]  # it cannot write Python
    assert all(entry["knapsack/success_rate"] == 0 for entry in log)


def test_train_code_on_a_dataset_that_the_model_can_solve(run, chat_model, tmp_path):
    """Any completion without a syntax error passes `1 == 1`; a digit and a letter, as in `3e`, are one."""
    rows = {"prompt": [[{"role": "user", "content": f"m{i}"}] for i in range(8)], "tests": [["assert 1 == 1"]] * 8}
    log = run(
        *(
            "train_code",
            "--model_name_or_path",
            chat_model,
            "--dataset_name",
            folder(Dataset.from_dict(rows), tmp_path / "d"),
        ),
        *("--max_completion_length", "2", "--temperature", "2"),
        *("--max_steps", "2", "--per_device_train_batch_size", "8"),
    )
    assert all(0 < entry["rewards/tests_passed/mean"] < 1 for entry in log)


def test_train_code_refuses_tests_that_would_show_the_answer(run, chat_model, tmp_path):
    rows = {"prompt": [[{"role": "user", "content": "m"}]], "tests": [["assert f(1) == 2", "assert f(1) < 2"]]}
    with pytest.raises(SystemExit, match=r"The test 'assert f\(1\) < 2' must read `assert <expression> == <literal>`"):
        run(
            "train_code",
            "--model_name_or_path",
            chat_model,
            "--dataset_name",
            folder(Dataset.from_dict(rows), tmp_path / "d"),
        )


def test_train_tools(run, chat_model, tmp_path):
    rows = {"prompt": [f"{i}+1=" for i in range(8)], "solution": [str(i + 1) for i in range(8)]}
    log = run(
        *("train_tools", "--model_name_or_path", chat_model, "--max_completion_length", "24"),
        *("--dataset_name", folder(Dataset.from_dict(rows), tmp_path / "d"), "--max_tool_calling_iterations", "2"),
    )
    assert all(entry["tools/call_frequency"] > 0 and entry["tools/failure_frequency"] == 0 for entry in log)
    assert "rewards/correct/mean" in log[0]


def test_train_vlm(run, vlm, tmp_path):
    """An image that is too large, one that is not RGB, and the column names of TRL's own example."""
    images = [tiny_chat.image(row) for row in range(8)]
    images[0], images[1] = images[0].resize((16, 16)), images[1].convert("L")
    rows = {
        "problem": [f"{kind}0{row}" for row, kind in enumerate("ehmmehmm")],
        "solution": ["1", "2", "e", "4", "5", "m", "7", "8"],
        "image": images,
    }
    dataset = Dataset.from_dict(rows).cast_column("image", Image())
    log = run(
        *("train_vlm", "--model_name_or_path", vlm, "--dataset_name", folder(dataset, tmp_path / "d")),
        *("--max_image_size", "8"),
    )
    assert len(log) == 3 and "rewards/accuracy/mean" in log[0]
    prepare = runpy.run_path(str(EXAMPLES / "train_vlm.py"))["prepare"]
    prepared = prepare(dataset, 8)
    assert [row["prompt"][0]["content"] for row in prepared] == rows["problem"][1:]
    assert {row["image"].mode for row in prepared} == {"RGB"}
    several = Dataset.from_dict({"prompt": ["a", "b"], "images": [images[1:3], images[:2]]}).cast_column(
        "images", [Image()]
    )
    (row,) = prepare(several, 8)  # the second has the large one
    assert (
        row["prompt"] == [{"role": "user", "content": "a"}] and [image.mode for image in row["images"]] == ["RGB"] * 2
    )


def test_train_instructions(run, chat_model):
    log = run("train_instructions", "--model_name_or_path", chat_model)
    for entry in log:
        assert 0 < entry["rewards/share_followed/mean"] < 1  # no commas, lower case
        assert entry["rewards/all_followed/mean"] < entry["rewards/share_followed/mean"]
        # success is all_followed, not the sum of both, whose mean over rows is larger
        assert entry["knapsack/success_rate"] <= entry["rewards/all_followed/mean"] + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_code", "train_tools", "train_instructions"])
def test_lora_and_a_config_folder(run, chat_model, tmp_path, name):
    """As `save_pretrained` writes it, and the Hub has it."""
    (tmp_path / "config").mkdir()
    options = f"model_name_or_path: {chat_model}\nallocation: filter\nuse_peft: true\nlora_r: 4\n"
    (tmp_path / "config" / "knapsack_config.yaml").write_text(options)
    run(name, "--config", str(tmp_path / "config"))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["train_code", "train_tools", "train_vlm", "train_instructions"])
def test_mistakes_end_in_a_sentence(run, chat_model, tmp_path, name):
    with pytest.raises(SystemExit, match="--model_name_or_path"):
        run(name)
    data = folder(Dataset.from_dict({"question": ["a"], "image": [1]}), tmp_path / "d")
    with pytest.raises(
        SystemExit, match=r"has no column 'prompt', only \['question', 'image'\]|no column 'constraints'"
    ):
        run(name, "--model_name_or_path", chat_model, "--dataset_name", data)


@pytest.mark.parametrize("name", ["train_math", "train_code", "train_tools", "train_vlm", "train_instructions"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("me/nothing", "knapsack_config.yaml of me/nothing is not in the cache"),
        ("no.yaml", "no.yaml is neither a file nor"),
    ],
)
def test_a_configuration_that_is_not_there_is_a_sentence(run, name, config, message):
    with pytest.raises(SystemExit, match=message):
        run(name, "--config", config)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("train_*.py")), ids=lambda script: script.stem)
def test_scripts_say_what_they_need(script):
    text = script.read_text(encoding="utf-8")
    assert text.startswith("# /// script\n# dependencies = [\n")
    assert (
        f"accelerate launch examples/{script.name}" in ast.get_docstring(ast.parse(text)) or script.stem == "train_vlm"
    )
    assert f"examples/{script.name}" in ast.get_docstring(ast.parse(text))
    assert f"[{script.name}]({script.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ reasoning-gym


@pytest.fixture(scope="module")
def gym_script():
    """The script's names, where reasoning-gym is installed."""
    pytest.importorskip("reasoning_gym", reason='needs `pip install -e ".[reasoning-gym]"`, as `make test-slow` does')
    return runpy.run_path(str(EXAMPLES / "train_reasoning_gym.py"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama that reads any text, with a chat template."""
    sys.path.append(str(EXAMPLES.parent / "benchmarks" / "language_model"))
    from base_model import save_tiny

    path = tmp_path_factory.mktemp("llama")
    save_tiny(path)
    return str(path)


@pytest.mark.slow
def test_train_reasoning_gym(run, gym_script, llama):
    log = run(
        *("train_reasoning_gym", "--model_name_or_path", llama, "--max_steps", "2", "--system_prompt", "direct"),
        *("--families", "gcd {max_value: 30}", "letter_counting {weight: 0.5}", "--num_problems", "8"),
        *("--num_eval_problems", "4", "--eval_strategy", "steps", "--eval_steps", "2"),
    )
    assert [entry["step"] for entry in log if "rewards/solved/mean" in entry] == [1, 2]


@pytest.mark.slow
def test_problems_of_reasoning_gym_are_all_different_and_scored_by_its_verifiers(gym_script):
    gym = gym_script["ReasoningGym"](["gcd {max_value: 20}", "gcd {max_value: 30, weight: 0.5}", "lcm"], "", seed=3)
    train, held_out = gym.split(40, 10)
    assert [row["family"] for row in train] == ["gcd"] * 60 + ["lcm"] * 40
    questions = [row["prompt"][0]["content"] for row in (*train[:40], *held_out[:10])]
    assert len(set(questions)) == 50
    solved, scores = gym.reward(), gym.reward(partial_credit=True)
    for row in train[:60]:
        numbers = [int(number) for number in re.findall(r"\d+", row["prompt"][0]["content"])]
        right = str(math.gcd(*numbers))
        said = [
            right,
            f" {right}\n",
            f"So: <answer> {right} </answer> it is",
            f"<answer>{right}</answer>",
            right + "0",
            "",
        ]
        chat = [[{"role": "assistant", "content": text}] for text in said]
        assert solved(said, [row["problem"]] * 6) == solved(chat, [row["problem"]] * 6) == [1, 1, 1, 1, 0, 0]
        assert 0 < scores([right + "0"], [row["problem"]])[0] < 1
    again = gym_script["ReasoningGym"](["lcm", "gcd {max_value: 20}"], "", seed=3).split(40)[0]
    assert again == train[60:] + train[:40]
    (few,) = gym.split(2, families=["lcm"])
    assert [row["family"] for row in few] == ["lcm"] * 2
    assert gym.reward()(["\\frac{["], [train[0]["problem"]]) == [0]


@pytest.mark.slow
def test_an_answer_that_the_verifier_chokes_on_is_wrong(gym_script):
    gym = gym_script["ReasoningGym"](["prime_factorization"], "Be brief.")
    (row,), *_ = gym.split(1)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    dataset, entry = gym._problems[row["problem"]]
    with pytest.raises(ValueError):
        dataset.score_answer("no numbers", entry)
    assert gym.reward()(["no numbers", gym.answer(row["problem"])], [row["problem"]] * 2) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("families", "said"),
    [
        (["gdc"], r"families: 'gdc' is no family of reasoning-gym; choose from ab, acre, "),
        (
            ["gcd {max_valu: 3}"],
            r"'gcd \{max_valu: 3\}' is refused by reasoning-gym .* its options are min_numbers=2, ",
        ),
        (["gcd {max_value: -3}"], r"refused by reasoning-gym \(max_value must be > min_value\); its options are "),
        (["gcd {max_value: many}"], r"refused by reasoning-gym .* its options are "),
        (["gcd {size: 5}"], r"refused by reasoning-gym .*'size'\); its options are "),
        (["gcd 50"], r"the options in 'gcd 50' must stand in braces, for example 'gcd \{max_value: 50\}'"),
        (["gcd {max_value"], r"must stand in braces"),
        (["gcd {weight: 0}"], r"weight \(0\) in 'gcd \{weight: 0\}' must be a positive number"),
        (["gcd", "gcd"], r"must name at least one, and none of them twice"),
        ([], r"must name at least one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_families_that_do_not_exist_are_one_sentence(gym_script, families, said):
    with pytest.raises(SystemExit, match=said):
        gym_script["ReasoningGym"](families, "")


@pytest.mark.slow
def test_a_family_with_too_few_problems_is_one_sentence(gym_script):
    gym = gym_script["ReasoningGym"](["gcd {max_value: 3}"], "")
    with pytest.raises(SystemExit, match=r"has only \d different problems in 401 draws, and 100 are"):
        gym.split(100)


def test_without_reasoning_gym_the_command_that_installs_it_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SystemExit, match=r'which is not installed; run `pip install -e "\.\[reasoning-gym\]"'):
        run("train_reasoning_gym", "--model_name_or_path", "unused")


# -------------------------------------------------------------------------------------------------- tools and rewards


def test_the_calculator():
    calculate = runpy.run_path(str(EXAMPLES / "train_tools.py"))["calculate"]
    assert calculate("(17 + 4) * -3") == "-63"
    assert calculate(" 7 / 2 ") == "3.5"
    assert calculate("123456789 * 987654321") == str(123456789 * 987654321)
    assert calculate("7 // 2 + 7 % 4") == "6"
    for wrong in (
        "1 +",
        "1 / 0",
        "__import__('os')",
        "9 ** 9 ** 9",
        "'a' * 9",
        "x",
        "True + 1",
        "1" * 201,
        "",
        "(" * 150,
    ):
        assert calculate(wrong).startswith("error: "), wrong


def test_the_answer_is_the_last_number_that_the_model_says():
    correct = runpy.run_path(str(EXAMPLES / "train_tools.py"))["correct"]
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    tool = {"role": "tool", "name": "calculate", "content": "12"}
    completions = [
        said("5 + 7 = 12."),
        said("12 or 13"),
        said("1,200"),
        [*said(""), tool, *said("It is 12")],
        [*said(""), tool],
    ]
    assert correct(completions, ["12", "12", "1200", "12", "12"]) == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert correct([said(None), said("-3.50")], ["0", "-3.5"]) == [0.0, 1.0]


def test_vlm_answers_are_verified_or_compared():
    accuracy = runpy.run_path(str(EXAMPLES / "train_vlm.py"))["accuracy"]
    said = [[{"role": "assistant", "content": text}] for text in (r"\boxed{0.5}", r"\boxed{2}", "A cat.", "dog")]
    assert accuracy(said, [r"$\frac{1}{2}$", "$3$", "a cat", "cat"]) == [1.0, 0.0, 1.0, 0.0]


FOLLOWED = [
    # constraints, completions that follow, completions that do not
    ({"min_words": 3}, ["It's a well-known fact"[:-5], "one two three"], ["one two", "one, - two"]),
    ({"max_words": 2}, ["one two", "don't stop"], ["one two three"]),
    ({"sentences": 2}, ["One. Two!", "One?! Two"], ["One.", "One. Two. Three.", "One"]),
    ({"paragraphs": 2}, ["a\n\nb", "a\n \n\n\nb"], ["a\nb", "a\n\nb\n\nc"]),
    ({"bullets": 2}, ["- a\n- b", "So:\n* a\n  * b"], ["- a", "- a\n- b\n- c", "-a\n-b", "a - b - c"]),
    ({"keywords": ["tide", "sea wall"]}, ["The TIDE at the sea wall."], ["tides at the sea wall", "tide"]),
    ({"forbidden": ["cold"]}, ["colder"], ["Cold!", "so cold"]),
    ({"starts_with": "Yes", "ends_with": "end."}, ["  Yes, the end.\n"], ["yes, the end.", "Yes."]),
    ({"no_commas": True}, ["a b"], ["a, b"]),
    ({"no_commas": False}, ["a, b"], [""]),
    ({"lowercase": True}, ["all 3 small"], ["All"]),
    ({"uppercase": True}, ["ALL 3"], ["ALl"]),
    (
        {"json": True},
        ['{"a": 1}', '```json\n["a"]\n```', "[1, 2]"],
        ["a: 1", '{"a": 1} Done', '```\n{"a": }\n```', "[" * 10**5 + "a"],
    ),
    ({"quoted": True}, ['"So he said"'], ['"So" he said', '"', "'a'"]),
]


@pytest.mark.parametrize(("constraints", "good", "bad"), FOLLOWED, ids=[" ".join(c) for c, *_ in FOLLOWED])
def test_constraints(constraints, good, bad):
    all_followed = runpy.run_path(str(EXAMPLES / "train_instructions.py"))["all_followed"]
    texts = [*good, *bad, "", "...", "- \n- "]  # without a word nothing is followed
    wanted = [1.0] * len(good) + [0.0] * (len(bad) + 3)
    assert all_followed(texts, [json.dumps(constraints)] * len(texts)) == wanted
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert all_followed(messages, [json.dumps(constraints)] * len(texts)) == wanted


def test_the_share_of_constraints():
    share = runpy.run_path(str(EXAMPLES / "train_instructions.py"))["share_followed"]
    constraints = json.dumps({"min_words": 2, "no_commas": True, "lowercase": True, "keywords": ["b"]})
    assert share(["a b", "a, B", "A", ""], [constraints] * 4) == [1.0, 0.5, 0.25, 0.0]
    with pytest.raises(ValueError, match="'min_word' must be one of min_words, "):
        share(["a"], ['{"min_word": 2}'])
    with pytest.raises(ValueError, match="at least one constraint"):
        share(["a"], ["{}"])


def test_every_constraint_is_asked_for_and_tested():
    checks = set(runpy.run_path(str(EXAMPLES / "train_instructions.py"))["CHECKS"])
    lines = (EXAMPLES / "instruction_problems" / "train.jsonl").read_text().splitlines()
    assert {name for line in lines for name in json.loads(json.loads(line)["constraints"])} == checks
    assert {name for constraints, *_ in FOLLOWED for name in constraints} == checks


def test_the_bundled_instructions_say_what_is_checked():
    """Numbers and quoted words of the constraints stand in the prompt."""
    spelled = "zero one two three four five six seven eight nine ten".split()
    for line in (EXAMPLES / "instruction_problems" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = row["prompt"][0]["content"]
        for name, value in json.loads(row["constraints"]).items():
            for one in value if isinstance(value, list) else [value]:
                said = [str(one).rstrip(".")] + ([spelled[one]] if type(one) is int and one <= 10 else [])
                known = {"Paris", "Madrid"}  # the answers
                assert one is True or one in known or any(re.search(rf"\b{s}\b", prompt) for s in said), (name, prompt)
