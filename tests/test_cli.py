"""The command line as a stranger, a pipe and a script use it."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import greedy

from trl_knapsack import KnapsackGRPOConfig, RolloutHistory, SuccessRateTracker, allocate
from trl_knapsack.allocation import BetaBeliefs, marginal_gains
from trl_knapsack.cli import COMMANDS, main
from trl_knapsack.evaluation import EvaluationResults, ProblemResult
from trl_knapsack.tracking import STATE_FILE


ROOT = Path(__file__).parent.parent


def command(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trl_knapsack", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def run(capsys):
    """Run in this process; returns the exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def rates(tmp_path) -> Path:
    path = tmp_path / "rates.csv"
    path.write_text("id,successes,trials,note\na,0,8,x\nb,1,8,y\nc,4,8,z\nd,8,8,\n")
    return path


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run of three steps, written by hand: `lazy` is solved, `stuck` never, `moves` and `late` get better."""
    visits = [
        (1, {"lazy": (8, 8, 80), "stuck": (0, 8, 400), "moves": (0, 8, 100)}),
        (2, {"lazy": (2, 2, 20), "stuck": (0, 20, 900), "late": (1, 2, 30)}),
        (3, {"stuck": (0, 14, 700), "moves": (6, 8, 90), "late": (2, 2, 20)}),
    ]
    tracker, lines = SuccessRateTracker(), []
    for step, batch in visits:
        keys = list(batch)
        won, tried, tokens = (list(column) for column in zip(*batch.values(), strict=True))
        evidence = tracker.evidence(keys)
        line = {
            "step": step,
            "epoch": step / 3,
            "allocation": "posterior",
            "solver_seconds": 0.0,
            "rank_imbalance": 1.0,
        }
        line |= {"keys": keys, "counts": tried, "successes": won, "trials": tried, "tokens": tokens}
        line |= {"mixed": [int(0 < s < n) for s, n in zip(won, tried, strict=True)]}
        line |= {"mean_reward": [s / n for s, n in zip(won, tried, strict=True)]}
        line |= {"alpha": evidence.alpha.tolist(), "beta": evidence.beta.tolist(), "visits": evidence.visits.tolist()}
        line |= {"last_rate": [None if np.isnan(rate) else rate for rate in evidence.last_rate]}
        lines.append(json.dumps(line) + "\n")
        tracker.observe(keys, won, tried, tokens=tokens)
    folder = tmp_path / "run"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "knapsack_records.jsonl").write_text("".join(lines))
    tracker.save(folder / "knapsack_state.safetensors")
    return folder


# ------------------------------------------------------------------------------------------------- the whole command


def test_help_names_every_command():
    done = command("--help")
    assert done.returncode == 0
    assert [name for name in COMMANDS if not re.search(rf"^    {name}  ", done.stdout, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "line", ["--help", "allocate RATES --budget 32", "inspect RUN", "inspect --watch RUN", "plot RUN --report REPORT", "simulate --mix hard --prompts 40"]
)  # fmt: skip
def test_what_needs_no_torch_loads_none(line, rates, run_folder, tmp_path):
    arguments = (
        line.replace("RATES", str(rates)).replace("RUN", str(run_folder)).replace("REPORT", str(tmp_path / "r.html"))
    )
    code = (
        "import sys\nfrom trl_knapsack.cli import main\n"
        f"try:\n    code = main({arguments.split()!r})\nexcept SystemExit as exit:\n    code = exit.code\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'{code} {sorted(heavy)}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_loads_no_numbers(name):
    code = (
        "import sys\nfrom trl_knapsack.cli import main\n"
        f"try:\n    main([{name!r}, '--help'])\nexcept SystemExit as exit:\n    assert exit.code == 0\n"
        "sys.exit(str({'torch', 'numpy', 'numba', 'rich', 'matplotlib'} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "0" and name in done.stdout


def on_a_terminal(width: int, *arguments: str) -> str:
    """What a terminal of so many columns is sent."""
    import pty

    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(width)}
    process = subprocess.Popen(
        [sys.executable, "-m", "trl_knapsack", *map(str, arguments)], stdout=child, env=environment
    )
    os.close(child)
    shown = b""
    while True:
        try:
            read = os.read(parent, 4096)
        except OSError:  # the end of a terminal on Linux
            break
        if not read:
            break
        shown += read
    os.close(parent)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_gets_tables_by_rich(rates):
    """With a real terminal as its output: lines are drawn, and bold has escape codes."""
    shown = on_a_terminal(100, "allocate", rates, "--budget", "32")
    assert "─" in shown and "\x1b[1m" in shown


@pytest.fixture
def hashed_run(run_folder) -> Path:
    """The run with the hashes of prompts for keys, and large numbers."""
    text = (run_folder / "knapsack_records.jsonl").read_text()
    for i, key in enumerate(("lazy", "stuck", "moves", "late")):
        text = text.replace(f'"{key}"', f'"{"0123456789abcdef"[i:] * 2:.32}"')
    (run_folder / "knapsack_records.jsonl").write_text(text.replace("400", "4001234"))
    return run_folder


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "line", ["inspect RUN", "allocate RATES --budget 32", "simulate --mix hard --prompts 40 --worlds 2"]
)
def test_tables_read_well_in_every_terminal(line, width, rates, hashed_run):
    """No line is wider than the terminal, no number is cut, and no word is split over two lines."""
    arguments = line.replace("RATES", str(rates)).replace("RUN", str(hashed_run)).split()
    out = re.sub(r"\x1b\[\d*m", "", on_a_terminal(width, *arguments))
    piped = command(*arguments).stdout
    numbers = set(re.findall(r"(?<![\w.])\d[\d,.]*\b", piped))
    assert all(len(row) <= width for row in out.splitlines()), max(out.splitlines(), key=len)  # of sentences, too
    tables = [block for block in out.split("\n\n") if "─" in block]
    assert len(tables) >= 1
    said = {word for block in out.split("\n\n") if "─" not in block for word in block.split()}
    assert said <= set(piped.split())  # none of them is split
    for table in tables:
        title, *rows = table.splitlines()
        assert all(len(row) <= width for row in rows), max(rows, key=len)
        heads = rows[: next(i for i, row in enumerate(rows) if "─" in row)]
        words = {word for row in heads for word in row.split()}
        assert words <= {word for line in piped.splitlines() for word in line.split()}, words  # whole ones
        shown = {n for row in rows[len(heads) + 1 :] for n in re.findall(r"(?<![\w.…])\d[\d,.]*\b(?!…)", row)}
        assert {n for n in shown if not re.match(r"0\d", n)} <= numbers
    if "inspect" in line:
        assert "4,002,834" in out  # the tokens of `stuck`, where prompts are ranked by them
    if "simulate" in line:
        assert {"posterior", "uniform", "oracle"} <= set(out.split())


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [60, 80])
def test_the_help_fits_the_terminal(name, width, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run(name, "--help")
    _, about, rest = out.partition("\n\n")  # after the usage, which argparse lays out
    about += rest[: rest.index("for example:")] if name == "train" else rest  # a command stays as it is
    assert max(len(line) for line in about.splitlines() if "{" not in line) <= width  # choices stay together


def test_columns_of_least_use_are_left_out_and_texts_cut():
    from trl_knapsack.cli.helpers.console import fit

    one, two, text = [30, 13, 9, 6], [30, 8, 9, 6], [True, False, False, False]
    assert fit(one, two, text, 66, [3]) == ([0, 1, 2, 3], one)
    assert fit(one, two, text, 65, [3]) == ([0, 1, 2, 3], two)  # heads over two lines
    assert fit(one, two, text, 50, [3]) == ([0, 1, 2, 3], [19, 8, 9, 6])  # the key is cut
    assert fit(one, two, text, 45, [3])[0] == [0, 1, 2]  # a column is left out
    assert fit(one, two, text, 20, [3, 2]) == ([0, 1], [8, 8, 9, 6])  # there is no more to leave out


HOSTILE = "\x1b[31mred\x00\u202e=1+1\x9b2J"


def test_text_that_is_not_ours_reaches_no_terminal_raw(run, run_folder, tmp_path):
    """Escapes of a terminal, NUL and bidirectional marks in keys and prompts; keys of ten million characters."""
    records = run_folder / "knapsack_records.jsonl"
    records.write_text(
        records.read_text().replace('"lazy"', json.dumps(HOSTILE)).replace('"late"', json.dumps("k" * 10**7))
    )
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": HOSTILE, "id": "stuck"}) + "\n")
    table = tmp_path / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["id", "success_rate"],
                [HOSTILE.replace("\x00", ""), 0.5],
                ["=cmd()", 0.1],
                ["-1", 0.2],
                ["+1", 0.3],
                ["@a", 0.4],
            ]
        )
    written = tmp_path / "counts.csv"
    for line in (
        ["inspect", run_folder],
        ["inspect", run_folder, "--json"],
        ["inspect", run_folder, "--dataset_name", tmp_path / "data.jsonl", "--prompt_id_column", "id"],
        ["allocate", table, "--num_generations", 8, "--output", written],
        ["allocate", table, "--num_generations", 8, "--json"],
    ):
        code, out, err = run(*line)
        assert code == 0, err
        raw = {c for c in out if not c.isprintable()} - {"\n"}
        assert not raw, (line, raw)
        if "--json" not in line:
            assert max(map(len, out.splitlines())) < 300
            assert r"\x1b[31mred" in out
    cells = [row[0] for row in csv.reader(written.open(newline="", encoding="utf-8"))]
    assert cells[2:] == ["'=cmd()", "'-1", "'+1", "'@a"]


def test_allocate_leaves_the_compiler_on(rates):
    """Called from Python, a later training would run uncompiled."""
    code = (
        "import os\nfrom trl_knapsack.cli import main\n"
        f"assert main(['allocate', {str(rates)!r}, '--budget', '32', '--json']) == 0\n"
        "import numba\nassert not numba.config.DISABLE_JIT and 'NUMBA_DISABLE_JIT' not in os.environ"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_stops_is_no_error(rates):
    many = "success_rate\n" + "0.5\n" * 20_000
    rates.write_text(many)
    line = f"{sys.executable} -m trl_knapsack allocate {rates} --num_generations 8 --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


# ---------------------------------------------------------------------------------------------------------- allocate


def best(alphas, betas, budget):
    """Best counts under beliefs within the bounds that `allocate` has by default."""
    return greedy(alphas, betas, budget, low=2, high=128)


def test_allocate_gives_the_best_counts_for_what_is_believed(run, rates, tmp_path):
    expected = best([1, 2, 5, 9], [9, 8, 5, 1], 32)
    code, out, err = run("allocate", rates, "--budget", 32, "--json", "--output", tmp_path / "counts.csv")
    said = json.loads(out)
    assert (code, err) == (0, "")
    assert [prompt["generations"] for prompt in said["prompts"]] == expected
    assert [prompt["id"] for prompt in said["prompts"]] == ["a", "b", "c", "d"]
    assert [prompt["success_rate"] for prompt in said["prompts"]] == pytest.approx([0.1, 0.2, 0.5, 0.9])
    assert said["budget"] == 32 and sum(row["rollouts"] for row in said["explanation"]) == 32
    with open(tmp_path / "counts.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [int(row["generations"]) for row in written] == expected and [row["id"] for row in written] == list("abcd")

    code, out, _ = run("allocate", rates, "--num_generations", 8)
    shown = [line.split() for line in out.split("\n\n")[0].splitlines()[2:]]
    assert [(line[0], int(line[-1])) for line in shown] == list(zip("abcd", expected, strict=True))
    assert "of uniform" in out and "of the paper's rule" in out


def test_a_fresh_process_allocates_as_the_compiled_kernels_do(run, tmp_path):
    rates = np.random.default_rng(0).random(300)
    table = tmp_path / "rates.csv"
    table.write_text("success_rate\n" + "".join(f"{rate}\n" for rate in rates))
    line = [sys.executable, "-m", "trl_knapsack", "allocate", str(table), "--num_generations", "8", "--json"]
    fresh = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    expected = allocate(rates, 2400)
    assert [prompt["generations"] for prompt in fresh["prompts"]] == expected.counts.tolist()


def test_allocate_takes_every_kind_of_table(run, tmp_path):
    def counts(text: str, *flags, name: str = "table.csv") -> list[int]:
        (tmp_path / name).write_text(text)
        code, out, err = run("allocate", tmp_path / name, "--budget", 40, "--json", *flags)
        assert code == 0, err
        return [prompt["generations"] for prompt in json.loads(out)["prompts"]]

    rates = "success_rate\n0.0\n0.1\n0.4\n0.9\n1.0\n"
    assert counts(rates) == [2, 24, 9, 3, 2]  # as in the README
    assert counts("alpha\tbeta\n0.5\t8.5\n4.5\t4.5\n", name="t.tsv") == best([0.5, 4.5], [8.5, 4.5], 40)
    assert counts(rates, "--allocation", "uniform") == [8] * 5
    assert counts(rates, "--allocation", "filter") == [2, 12, 12, 12, 2]
    assert counts(rates, "--max_generations", 12) == [2, 12, 12, 12, 2]  # nothing to gain at 0 and 1
    trials = "successes,trials\n2,4\n0,0\n"
    assert counts(trials) == best([3, 1], [3, 1], 40)
    assert counts(trials, "--success_prior", 1, 3) == best([3, 1], [5, 3], 40)


@pytest.mark.parametrize("rule", ["uniform", "filter"])
def test_allocate_prices_equal_shares_in_the_units_of_the_value(run, rates, rule):
    prices = {}
    for value in ("knapsack", "variance"):
        code, out, err = run(
            "allocate", rates, "--num_generations", 8, "--allocation", rule, "--value", value, "--json"
        )
        assert code == 0, err
        said = json.loads(out)
        counts = [prompt["generations"] for prompt in said["prompts"]]
        prices[value] = marginal_gains(BetaBeliefs([1, 2, 5, 9], [9, 8, 5, 1]), counts, value).max()
        assert said["shadow_price"] == pytest.approx(prices[value])
    assert prices["variance"] > 1.2 * prices["knapsack"]


def test_the_prior_and_decay_of_a_run_are_the_defaults_everywhere(run, tmp_path):
    config, tracker = KnapsackGRPOConfig("out", use_cpu=True, bf16=False), SuccessRateTracker()
    assert (tuple(config.success_prior), config.success_decay) == (tracker.prior, tracker.decay)
    given = ("--success_prior", *config.success_prior, "--success_decay", config.success_decay)
    simulation = ("simulate", "--prompts", 40, "--worlds", 1, "--epochs", 3, "--allocation", "posterior", "--json")
    assert run(*simulation) == run(*simulation, *given)
    table = tmp_path / "table.csv"
    table.write_text("successes,trials\n2,4\n0,1\n")
    allocation = ("allocate", table, "--budget", 40, "--json")
    assert run(*allocation) == run(*allocation, *given[:3])


def test_allocate_heeds_tokens(run, tmp_path):
    table = tmp_path / "costs.csv"
    table.write_text("success_rate,cost\n0.02,900\n0.1,700\n0.4,500\n0.9,300\n1.0,250\n")
    code, out, _ = run("allocate", table, "--budget", 40, "--cost_weight", 1e-6, "--json")
    assert [prompt["generations"] for prompt in json.loads(out)["prompts"]] == [2, 21, 9, 6, 2]  # docs/allocator.md
    code, out, _ = run("allocate", table, "--budget", 40, "--max_cost", 22000)
    assert code == 0 and "expected tokens 21,700" in out


def test_allocate_reads_the_state_of_a_run(run, run_folder):
    alpha, beta = 1.0, 1.0 + 0.85 * (0.85 * 8 + 20) + 14  # what is left of `stuck`
    code, out, _ = run("allocate", run_folder, "--num_generations", 8, "--json")
    prompts = {prompt["id"]: prompt for prompt in json.loads(out)["prompts"]}
    assert prompts.keys() == {"lazy", "stuck", "moves", "late"}
    assert prompts["stuck"]["success_rate"] == pytest.approx(alpha / (alpha + beta))
    assert sum(prompt["generations"] for prompt in prompts.values()) == 32
    (run_folder / "knapsack_state.safetensors").rename(run_folder / "checkpoint-2" / "knapsack_state.safetensors")
    assert run("allocate", run_folder, "--num_generations", 8, "--json")[1] == out  # of the newest checkpoint
    code, out, _ = run("allocate", run_folder, "--num_generations", 8, "--cost_weight", 1e-5, "--json")
    assert json.loads(out)["cost"] > 0  # lengths are in the state


# ----------------------------------------------------------------------------------------------------------- inspect


def test_inspect_finds_the_hardest_the_stuck_and_the_dear(run, run_folder):
    code, out, err = run("inspect", run_folder, "--json")
    said = json.loads(out)
    assert (code, err) == (0, "")
    assert (said["prompts"], said["rollouts"], said["tokens"], said["steps"]) == (4, 72, 2340, 3)
    assert [prompt["prompt"] for prompt in said["stuck"]] == ["stuck"]
    assert said["stuck_share_of_rollouts"] == pytest.approx(42 / 72)
    assert (
        said["known_share_of_rollouts"] == pytest.approx((2 + 20 + 14 + 8 + 2) / 72) and said["equal_counts"] is None
    )
    assert [prompt["prompt"] for prompt in said["hardest"]] == ["stuck", "moves", "late", "lazy"]
    assert [prompt["prompt"] for prompt in said["most_tokens"]] == ["stuck", "moves", "lazy", "late"]
    assert [(prompt["prompt"], prompt["rollouts"]) for prompt in said["most_rollouts"]] == [
        ("stuck", 42), ("moves", 16), ("lazy", 10), ("late", 4)
    ]  # fmt: skip
    tracker = SuccessRateTracker()
    tracker.load(run_folder / STATE_FILE)
    for prompt in said["hardest"]:
        believed = tracker.evidence([prompt["prompt"]]).beliefs.mean
        assert prompt["believed_rate"] == pytest.approx(believed), prompt["prompt"]
    transitions = np.zeros((5, 5), int)
    transitions[4, 4] = transitions[0, 0] = transitions[0, 2] = transitions[2, 4] = 1
    assert said["transitions"] == transitions.tolist()

    code, out, _ = run("inspect", run_folder, "--top", 1)
    assert "1 of 4 prompts are stuck; they took 58.3% of the rollouts." in out
    assert out.splitlines()[1] == "63.9% of the rollouts were decided by what was known of their prompts."
    assert out.count("stuck  ") == 4 and "lazy" not in out  # one prompt in each of the four tables
    code, out, _ = run("inspect", run_folder, "--stuck_after", 43)
    assert "never a success: none" in out


def test_inspect_reads_the_results_of_an_evaluation_and_a_probe(run, run_folder, tmp_path):
    """They end in .jsonl as a history does; the error for a path that is not there recommends them."""
    problems = [
        ProblemResult("solved", (1.0, 1.0)),
        ProblemResult("half", (1.0, 0.0)),
        ProblemResult("never", (0.0, 0.0)),
    ]
    EvaluationResults(problems).save(tmp_path / "results.jsonl")
    (tmp_path / "rates.jsonl").write_text(
        '{"id": "solved", "c": 2, "n": 2}\n{"id": "half", "c": 1, "n": 2}\n{"id": "never", "c": 0, "n": 2}\n'
    )
    for name in ("results.jsonl", "rates.jsonl"):
        code, out, err = run("inspect", tmp_path / name, "--json")
        assert (code, err) == (0, ""), name
        said = json.loads(out)
        assert said["from"] == "state" and said["prompts"] == 3
        assert [prompt["prompt"] for prompt in said["hardest"]] == ["never", "half", "solved"]
    history = (run_folder / "knapsack_records.jsonl").rename(tmp_path / "mine.jsonl")
    code, out, _ = run("inspect", history, "--json")
    assert code == 0 and json.loads(out)["steps"] == 3  # a history under another name
    (tmp_path / "knapsack_records.jsonl").write_text('{"id": "a"}\n')
    assert "is not a generation batch" in run("inspect", tmp_path / "knapsack_records.jsonl")[2]


def test_inspect_a_state_says_what_it_cannot_know(run, run_folder):
    code, out, _ = run("inspect", run_folder / "knapsack_state.safetensors")
    assert code == 0 and "It knows no history" in out and "Difficulty at the last visit" in out
    code, out, _ = run("inspect", run_folder / "knapsack_state.safetensors", "--json", "--stuck_after", 30)
    said = json.loads(out)
    assert said["from"] == "state" and said["transitions"] is None and said["steps"] is None
    assert [prompt["prompt"] for prompt in said["stuck"]] == ["stuck"]
    assert said["difficulty"] == {"extremely_hard": 1, "hard": 0, "medium": 1, "easy": 0, "extremely_easy": 2}


def test_inspect_shows_the_text_of_prompts(run, run_folder, tmp_path):
    rows = [{"prompt": f"What is [{name}]?", "name": name} for name in ("stuck", "lazy", "moves", "late", "other")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--dataset_name", tmp_path / "data.jsonl")
    code, out, err = run("inspect", run_folder, *data, "--prompt_id_column", "name")
    assert code == 0 and "What is [stuck]?" in out and "[other]" not in out
    code, out, _ = run("inspect", run_folder, *data, "--prompt_id_column", "name", "--json")
    assert json.loads(out)["hardest"][0]["text"] == "What is [stuck]?"
    code, out, err = run("inspect", run_folder, *data)  # by content, which the run did not use
    assert code == 2 and "prompt_id_column" in err


@pytest.mark.parametrize("kind", ["Dataset", "DatasetDict"])
def test_a_dataset_on_disk_is_a_dataset(run, run_folder, tmp_path, kind):
    """Whatever `save_to_disk` wrote; without splits it is the one to train on."""
    from datasets import Dataset, DatasetDict

    saved = Dataset.from_dict({"prompt": ["What is [stuck]?"], "name": ["stuck"]})
    (saved if kind == "Dataset" else DatasetDict({"train": saved})).save_to_disk(tmp_path / "saved")
    data = ("--dataset_name", tmp_path / "saved", "--prompt_id_column", "name")
    code, out, err = run("inspect", run_folder, *data)
    assert code == 0 and "What is [stuck]?" in out, err
    code, _, err = run("inspect", run_folder, *data, "--dataset_train_split", "test")
    assert code == 2 and "has no split 'test', only ['train']; name one with --dataset_train_split" in err
    saved.rename_column("prompt", "question").save_to_disk(tmp_path / "other")
    code, _, err = run("inspect", run_folder, "--dataset_name", tmp_path / "other")
    assert code == 2 and "has no column 'prompt', only ['question', 'name']" in err


# -------------------------------------------------------------------------------------------------------------- plot


def test_plot_writes_what_is_asked_for(run, run_folder, tmp_path):
    from trl_knapsack.cli.commands.plot import PLOTS
    from trl_knapsack.reporting.plots import PLOTS as DRAWN

    assert set(PLOTS) == set(DRAWN)
    code, out, err = run(
        "plot", run_folder, "--what", "counts", "budgets", "--format", "svg", "--output_dir", tmp_path / "f"
    )
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(tmp_path / "f" / f"{name}.svg") for name in ("counts", "budgets")]
    assert sorted(file.name for file in (tmp_path / "f").iterdir()) == ["budgets.svg", "counts.svg"]
    assert all("<svg" in file.read_text() for file in (tmp_path / "f").iterdir())
    code, out, err = run(
        "plot", "--what", "counts", "budgets", run_folder, "--format", "svg", "--output_dir", tmp_path / "f"
    )
    assert (code, err) == (0, "") and len(out.splitlines()) == 2  # the flag does not swallow the run
    report = tmp_path / "report.html"
    assert run("plot", run_folder, "--report", report, "--json")[:2] == (
        0,
        f'{{\n  "files": [\n    "{report}"\n  ]\n}}\n',
    )
    assert report.read_text().lstrip().lower().startswith("<!doctype html")
    assert not (run_folder / "figures").exists()


# ---------------------------------------------------------------------------------------------------------- simulate


def test_simulate_tells_what_the_simulation_says(run):
    from trl_knapsack.simulation import Prompts, simulate

    settings = ("--prompts", 60, "--epochs", 3, "--worlds", 2, "--seed", 5, "--num_generations", 6)
    code, out, err = run("simulate", "--mix", "hard", "broad", *settings, "--json")
    said = json.loads(out)
    assert (code, err) == (0, "")
    expected = simulate(Prompts.from_mix("hard", 60), epochs=3, worlds=2, seed=5, num_generations=6)
    first = said["simulations"][0]
    assert first["prompts_from"] == "hard" and said["simulations"][1]["prompts_from"] == "broad"
    np.testing.assert_allclose(first["by_world_and_epoch"]["value"]["posterior"], expected.value["posterior"])
    gains = {row["allocation"]: row["gain"] for row in first["allocations"]}
    assert gains["oracle"] == pytest.approx(expected.gain("oracle").mean())
    code, out, _ = run("simulate", "--mix", "hard", *settings)
    assert "hard: 60 prompts x 6 generations, 3 epochs, 2 worlds" in out
    assert f"{100 * gains['posterior']:.1f} %" in out
    assert "No simulation can tell you" in out  # what it can't know


def test_simulate_begins_with_rates_or_a_state(run, tmp_path, run_folder, rates):
    code, out, _ = run("simulate", "--rates", rates, "--epochs", 1, "--worlds", 1, "--json")
    value = [(1 - p**8 - (1 - p) ** 8) * p * (1 - p) ** 2 for p in (0, 1 / 8, 1 / 2, 1)]
    assert json.loads(out)["simulations"][0]["by_world_and_epoch"]["value"]["uniform"] == [
        [pytest.approx(np.mean(value))]
    ]
    code, out, _ = run("simulate", "--state", run_folder, "--epochs", 1, "--worlds", 1, "--json")
    said = json.loads(out)["simulations"][0]
    assert said["prompts"] == 4
    assert said["by_world_and_epoch"]["largest_budget"]["posterior"][0][0] > 8  # no uniform first epoch
    assert said["allocations"][0]["gain_halfwidth"] is None  # one world has no interval


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("allocate RATES", "one of the arguments --budget --num_generations is required"),
        ("allocate RATES --budget 3", "budget (3) must lie between 8 and 512"),
        ("allocate RATES --budget 32 --max_cost 9", "has neither a column cost nor lengths"),
        ("allocate RATES --budget 32 --bud 3", "unrecognized arguments: --bud 3"),
        ("allocate nowhere --budget 32", "nowhere does not exist"),
        ("allocate nowhere.csv --budget 32", "nowhere.csv"),
        ("allocate EMPTY --budget 32", "has no rows"),
        ("allocate WORDS --budget 32", "Line 3 of WORDS: successes ('many') must be a number at least 0"),
        ("allocate OTHER --budget 32", "it needs success_rate, or successes and trials, or alpha and beta"),
        ("allocate ABOVE --budget 32", "Line 2 of ABOVE: successes (9) must not exceed trials (8)"),
        ("allocate FOLDER --budget 32", "holds no knapsack_state.safetensors"),
        ("inspect RUN --top 0", "top (0)"),
        ("inspect JSONL", "is not a generation batch"),
        ("plot nowhere", "does not exist"),
        ("plot RUN --what pie", "invalid choice: 'pie'"),
        ("plot --what counts", "which run?"),
        ("plot RUN --what counts --output_dir JSONL", "can't be written (File exists: JSONL)"),
        ("allocate RATES --budget 32 --output JSONL/x.csv", "can't be written (File exists: JSONL)"),
        ("inspect RUN --dataset_name nowhere", "dataset 'nowhere' can't be loaded"),
        ("evaluate model --dataset_name nowhere --reward_funcs accuracy_reward", "dataset 'nowhere' can't be loaded"),
        ("simulate --mix easy", "invalid choice: 'easy'"),
        ("simulate --num_generations 1 --prompts 9", "budget (9) must lie between 18"),
        ("simulate --mix hard --rates RATES", "not allowed with argument"),
        ("evaluate model", "needs --dataset_name"),
        ("evaluate nowhere.jsonl", "nowhere.jsonl"),
        ("allocat", "invalid choice: 'allocat'"),
        ("", "the following arguments are required: command"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(run, rates, run_folder, tmp_path, line, message):
    texts = {
        "EMPTY": "success_rate\n",
        "WORDS": "successes,trials\n1,2\nmany,2\n",
        "OTHER": "a,b\n1,2\n",
        "ABOVE": "successes,trials\n9,8\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "FOLDER").mkdir()
    paths = {name: str(tmp_path / f"{name}.csv") for name in texts}
    paths |= {"RATES": str(rates), "RUN": str(run_folder), "JSONL": str(tmp_path / "bad.jsonl")}
    paths["FOLDER"] = str(tmp_path / "FOLDER")
    code, out, err = run(
        *(
            word.replace("JSONL/", paths["JSONL"] + "/") if "JSONL/" in word else paths.get(word, word)
            for word in line.split()
        )
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("trl-knapsack"), err
    for name, path in paths.items():
        message = message.replace(name, path)
    assert message in err


def test_nothing_there_yet_is_code_1(run, tmp_path):
    (tmp_path / "knapsack_records.jsonl").write_text("")
    assert not len(RolloutHistory.load(tmp_path))
    for name in ("inspect", "plot"):
        code, out, err = run(name, tmp_path)
        assert (code, out) == (1, "") and err.count("\n") == 1


# ------------------------------------------------------------------------------------------------- train and evaluate

REWARDS = """
def says_three(completions, **kwargs):
    return [float("3" in completion) for completion in completions]

not_a_function = 3
"""


@pytest.fixture
def project(model, tmp_path) -> Path:
    """A working directory with a dataset, a module of rewards and a recipe."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_rewards.py").write_text(REWARDS)
    for split, count in (("train", 16), ("test", 4)):
        (folder / "data").mkdir(exist_ok=True)
        rows = "".join(json.dumps({"prompt": f"m{split[1]}{i:02}", "id": f"{split}-{i}"}) + "\n" for i in range(count))
        (folder / "data" / f"{split}.jsonl").write_text(rows.replace("mr", "m1").replace("me", "m2"))
    (folder / "recipe.yaml").write_text(
        f"model_name_or_path: {model}\ndataset_name: data\nreward_funcs: my_rewards.says_three\nprompt_id_column: id\n"
        "num_generations: 4\nper_device_train_batch_size: 16\nmax_completion_length: 6\nuse_cpu: true\nbf16: false\n"
        "gradient_checkpointing: false\nmax_steps: 2\nlogging_steps: 1\nreport_to: none\nsave_strategy: 'no'\n"
        "num_processes: 1\nmixed_precision: 'no'\n"  # the last two are accelerate's
    )
    return folder


def test_train_and_then_look_at_the_run(project, run):
    done = command(
        "train", "--config", "recipe.yaml", "--num_machines", "1", "--dynamo_backend", "no",
        "--allocation", "filter", "--output_dir", "out", cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "were not passed to `accelerate launch`" not in done.stderr  # all four went there
    assert re.search(r"^allocation +filter$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(
        r"^effective gradient ratio +\d\.\d{3} at step 1, \d\.\d{3} at step 2$", done.stdout, re.MULTILINE
    )
    assert (project / "out" / "model.safetensors").is_file()
    logs = json.loads((project / "out" / "trainer_state.json").read_text())["log_history"]
    assert "rewards/says_three/mean" in logs[0]

    code, out, _ = run("inspect", project / "out", "--json")
    assert (code, json.loads(out)["rollouts"], json.loads(out)["prompts"]) == (0, 32, 8)
    assert {prompt["prompt"] for prompt in json.loads(out)["hardest"]} <= {f"train-{i}" for i in range(16)}
    code, out, _ = run("allocate", project / "out", "--num_generations", 4, "--json")
    assert (code, json.loads(out)["budget"]) == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--learning_rte", "1"], 2, "--learning_rte is not an option of the trainer or of accelerate launch; did you mean --learning_rate?"),
        (["--num_eval_problems", "9"], 2, "or of accelerate launch; see trl-knapsack train --help."),  # of a script
        (["--min_generations", "9"], 2, "min_generations (9) must be at most num_generations (4)"),
        (["--reward_funcs", "nothere.reward"], 2, "reward function 'nothere.reward': there is no module 'nothere'"),
        (["--reward_funcs", "acuracy_reward"], 2, "trl.rewards has no reward function 'acuracy_reward'; did you mean 'accuracy_reward'?"),
        (["--accelerate_config", "zero9"], 2, "is neither a file nor one of TRL's presets: fsdp1, fsdp2, multi_gpu"),
        (["--learning_rate", "fast"], 2, "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        (["stray"], 2, "stray is not an option of the trainer"),
    ],
)  # fmt: skip
def test_mistakes_in_training_are_told_before_anything_starts(project, run, monkeypatch, arguments, code, message):
    monkeypatch.chdir(project)
    got, out, err = run("train", "--config", "recipe.yaml", *arguments)
    assert (got, out) == (code, "")
    assert message in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--learning_rte 1", "--learning_rte is not an option of the trainer or of accelerate launch; did you mean --learning_rate?"),
        ("--config typo.yaml", "--num_generatons is not an option of the trainer or of accelerate launch; did you mean --num_generations?"),
        ("--config broken.yaml", "broken.yaml is not a YAML file"),
        ("--config list.yaml", "list.yaml must be a YAML mapping"),
        ("--reward_funcs my_rewards.says_thre", "my_rewards has no reward function 'says_thre'; did you mean 'says_three'?"),
        ("--reward_funcs my_rewards.not_a_function", "my_rewards has no reward function 'not_a_function'"),
        ("--reward_funcs my_rewards.says_three accuracy_rewrd", "did you mean 'accuracy_reward'?"),
        ("--success_reward_func three", "success_reward_func 'three' must be one of the reward functions: says_three"),
        ("--dataset_name nowhere", "dataset 'nowhere' can't be loaded"),
        ("--dataset_train_split training", "data has no split 'training', only ['train', 'test']; name one with --dataset_train_split"),
        ("--eval_strategy steps --dataset_test_split held-out", "has no split 'held-out'"),
        ("--dataset_name questions.jsonl", "questions.jsonl has no column 'prompt', only ['question']; rename"),
        ("--prompt_id_column name", "prompt_id_column 'name' is not a column of data, which has ['prompt', 'id']"),
    ],
)  # fmt: skip
def test_mistakes_are_told_without_importing_trl(project, arguments, message):
    """Torch alone takes longer to import than the sentence should; exit code 2, nothing on stdout."""
    recipe = (project / "recipe.yaml").read_text()
    (project / "typo.yaml").write_text(recipe.replace("num_generations", "num_generatons"))
    (project / "broken.yaml").write_text("a: [1")
    (project / "list.yaml").write_text("- a\n")
    (project / "questions.jsonl").write_text('{"question": "1"}\n')
    words = arguments.split() if "--config" in arguments else ["--config", "recipe.yaml", *arguments.split()]
    code = (
        "import sys\nfrom trl_knapsack.cli import main\n"
        f"code = main({['train', *words]!r})\n"
        "heavy = {'torch', 'trl', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_rewards_that_a_source_does_not_name_are_left_to_the_training(project, monkeypatch):
    from trl_knapsack.cli.helpers.rewards import check_reward, load_reward

    monkeypatch.chdir(project)
    (project / "more.py").write_text(
        "from my_rewards import *\nimport my_rewards\nalias = my_rewards.says_three\n"
        "if True:\n    def late(completions, **kwargs):\n        return []\n"
    )
    for name in ("alias", "late", "says_three"):
        assert check_reward(f"more.{name}") is None and callable(load_reward(f"more.{name}"))
    assert check_reward("my_rewards.says_three") == "says_three"
    assert check_reward("math.sqrt") is None  # no source
    assert check_reward("accuracy_reward") == "accuracy_reward"
    with pytest.raises(ValueError, match="there is no module 'nothere.at'"):
        check_reward("nothere.at.all")


def test_the_options_that_are_known_without_importing_trl_are_those_of_the_parsers():
    from accelerate.commands.launch import launch_command_parser

    from trl_knapsack.cli.helpers.options import known_options, own_options
    from trl_knapsack.cli.helpers.training_script import make_parser

    known = known_options()
    real = {*make_parser()._option_string_actions, *launch_command_parser()._option_string_actions}
    assert real <= known
    assert {option for option in known - real if not option.startswith("--no")} <= {
        *("--config", "--accelerate_config", "--accelerate-config", "--help-all", "--help_all")
    }
    assert all(own_options().values()) and "min_generations" in own_options()


def test_where_the_sources_say_too_little_the_parser_decides(monkeypatch):
    from trl_knapsack.cli.helpers import options

    monkeypatch.setattr(options, "CLASSES", (*options.CLASSES, ("trl", "trainer/grpo_config.py", "Renamed")))
    assert options.known_options() is None
    options.check_spelling(["--whatever"], {})
    monkeypatch.setattr(options, "CLASSES", options.CLASSES[:3])  # the bases of GRPOConfig are missing
    assert options.known_options() is None


def test_the_help_of_train_is_our_options(run):
    code, out, err = run("train", "--help")
    assert (code, err) == (0, "") and len(out.splitlines()) < 80
    assert "--min_generations" in out and "--learning_rate" not in out and "--help-all" in out
    code, out, _ = run("train", "--help-all")
    assert code == 0 and "--min_generations" in out and "--learning_rate" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved", "mixture"])
def test_train_on_a_dataset_on_disk_and_on_a_mixture(project, kind):
    from datasets import Dataset

    rows = [{"prompt": f"m1{i:02}", "id": str(i)} for i in range(16)]
    Dataset.from_list(rows).save_to_disk(project / "saved")
    recipe = (project / "recipe.yaml").read_text()
    mixture = "datasets:\n- path: json\n  data_files: data/train.jsonl\n- path: json\n  data_files: data/test.jsonl\n"
    new = "dataset_name: saved\n" if kind == "saved" else mixture
    (project / "recipe.yaml").write_text(recipe.replace("dataset_name: data\n", new))
    done = command("train", "--config", "recipe.yaml", "--output_dir", "out", cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    keys = {key for line in (project / "out" / "knapsack_records.jsonl").open() for key in json.loads(line)["keys"]}
    assert keys <= (
        {str(i) for i in range(16)}
        if kind == "saved"
        else {f"train-{i}" for i in range(16)} | {f"test-{i}" for i in range(4)}
    )


def test_train_needs_a_model_a_dataset_and_a_reward(run):
    needed = {"--model_name_or_path": "m", "--dataset_name": "d", "--reward_funcs": "accuracy_reward"}
    for missing in needed:
        given = [word for option, value in needed.items() if option != missing for word in (option, value)]
        code, _, err = run("train", *given, "--use_cpu", "--bf16", "false")
        assert code == 2 and f"give {missing}" in err.splitlines()[-1]


def test_evaluate_a_model_and_compare_two(project, run, monkeypatch):
    monkeypatch.chdir(project)
    model = re.search(r"model_name_or_path: (.*)", (project / "recipe.yaml").read_text())[1]
    flags = ("--dataset_name", "data", "--reward_funcs", "my_rewards.says_three", "--prompt_id_column", "id")
    flags += ("--num_generations", 4, "--max_completion_length", 6, "--output_dir", "evaluated")
    code, out, err = run("evaluate", model, *flags, "--answers", "exact", "--json")
    assert code == 0, err
    said = json.loads(out)
    (file,) = (project / "evaluated").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(4)]
    assert said["metrics"]["avg@4"][0] == pytest.approx(np.mean([np.mean(row["rewards"]) for row in rows]))
    assert said["metrics"]["pass@4"][0] == pytest.approx(np.mean([max(row["rewards"]) for row in rows]))
    assert "maj@4" in said["metrics"]

    code, out, _ = run("evaluate", file)  # the results again, as a table
    assert code == 0 and f"{said['metrics']['avg@4'][0]:.3f}" in out
    other = project / "solved.jsonl"
    other.write_text("".join(json.dumps({"id": row["id"], "n": 4, "c": 4}) + "\n" for row in rows))
    code, out, _ = run("evaluate", other, "--compare", file, "--json")
    first, second = json.loads(out)["estimates"]["avg@4"]
    assert code == 0 and first == 1.0 and second == pytest.approx(said["metrics"]["avg@4"][0])


def test_a_mistake_in_a_reward_function_keeps_its_traceback_and_what_was_sampled(project, run, monkeypatch):
    monkeypatch.chdir(project)
    (project / "broken.py").write_text(
        "def reward(completions, **kwargs):\n    raise ValueError('a mistake of mine')\n"
    )
    model = re.search(r"model_name_or_path: (.*)", (project / "recipe.yaml").read_text())[1]
    flags = (
        "--dataset_name",
        "data",
        "--num_generations",
        4,
        "--max_completion_length",
        6,
        "--output_dir",
        "evaluated",
    )
    with pytest.raises(ValueError, match="a mistake of mine"):
        run("evaluate", model, *flags, "--reward_funcs", "broken.reward")
    (kept,) = (project / "evaluated").iterdir()
    assert kept.name.endswith(".completions.jsonl") and len(kept.read_text().splitlines()) == 1 + 4

    monkeypatch.setattr(
        "trl_knapsack.evaluation.policy.sample_completions", lambda *args, **kwargs: pytest.fail("sampled")
    )
    code, _, err = run("evaluate", model, *flags, "--reward_funcs", "my_rewards.says_three")
    assert code == 0, err
    (results,) = (project / "evaluated").iterdir()  # the completions have served
    assert len(results.read_text().splitlines()) == 4


# --------------------------------------------------------------------------------------------------------- the pages


def console_blocks(page: str) -> list[tuple[str, str]]:
    """Commands of `trl-knapsack` in a page, each with what it prints there."""
    found = []
    for block in re.findall(
        r"^```console\n(.*?)^```$", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        for part in re.split(r"^\$ ", block.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
            line, _, printed = part.partition("\n")
            if line.startswith("trl-knapsack "):
                found.append((line.removeprefix("trl-knapsack "), printed))
    return found


@pytest.mark.parametrize("page", ["cli.md", "simulate.md"])
def test_the_pages_use_flags_that_exist(page):
    from trl_knapsack.cli import build_parser
    from trl_knapsack.cli.commands.train import launch_arguments
    from trl_knapsack.cli.helpers.training_script import make_parser

    lines = [shlex.split(line) for line, _ in console_blocks(page)]
    assert len(lines) > 4
    for arguments in lines:
        if arguments[0] != "train":
            build_parser().parse_args(arguments)
        elif "--learning_rte" not in arguments:
            parser = make_parser()
            unknown = parser.parse_known_args(arguments[1:])[1]
            if "--config" in unknown:
                unknown = unknown[: unknown.index("--config")] + unknown[unknown.index("--config") + 2 :]
            launch_arguments(unknown, parser)


def test_the_page_shows_what_allocate_prints(run, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    Path("rates.csv").write_text(re.search(r"^\$ cat rates.csv\n(.*?)^\$", text, re.DOTALL | re.MULTILINE)[1])
    ((line, printed),) = (each for each in console_blocks("cli.md") if each[0].startswith("allocate"))
    assert run(*shlex.split(line)) == (0, printed, "")
