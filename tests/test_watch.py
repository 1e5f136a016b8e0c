"""`inspect --watch`: a run that is under way, on one screen."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from trl_knapsack import RolloutHistory
from trl_knapsack.cli import main
from trl_knapsack.tracking.history import HistoryReader
from trl_knapsack.tracking.run_holder import RunHolder


ROOT = Path(__file__).parent.parent
RECORDS, HOLDER = "knapsack_records.jsonl", "knapsack_run.json"


def line_of(step: int, groups: list[tuple]) -> str:
    """A batch as a run writes it; each group is a key, alpha and beta before, visits before, rollouts and successes."""
    keys, alpha, beta, visits, counts, successes = (list(column) for column in zip(*groups, strict=True))
    batch = {"step": step, "epoch": step / 4, "allocation": "posterior", "solver_seconds": 0.0, "rank_imbalance": 1.0}
    batch |= {"keys": keys, "counts": counts, "successes": successes, "trials": counts, "tokens": counts}
    batch |= {"mixed": [int(0 < s < n) for s, n in zip(successes, counts, strict=True)]}
    batch |= {"mean_reward": [s / n for s, n in zip(successes, counts, strict=True)]}
    return json.dumps(batch | {"alpha": alpha, "beta": beta, "visits": visits, "last_rate": [None] * len(keys)}) + "\n"


# Beta(1, 1) before a prompt's first visit
FIRST = [("hard", 1, 1, 0, 30, 0), ("half", 1, 1, 0, 8, 4), ("solved", 1, 1, 0, 2, 2)]
SECOND = [("hard", 1, 31, 1, 34, 0), ("half", 5, 5, 1, 6, 3)]


@pytest.fixture
def folder(tmp_path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / RECORDS).write_text(line_of(1, FIRST) + line_of(2, SECOND))
    return run


def say_it_trains(folder: Path, **changes) -> None:
    """As a run does, of this process."""
    said = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    (folder / HOLDER).write_text(json.dumps(said | {"step": 0, "max_steps": 8} | changes))


class Terminal:
    """`inspect --watch` in a terminal of so many columns and lines, and what it has been sent."""

    def __init__(self, folder: Path, width: int = 80, height: int = 24):
        self.parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "trl_knapsack", "inspect", "--watch", str(folder)]
        environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdout=child, stderr=child, env=environment, start_new_session=True)
        os.close(child)
        self.raw = b""

    @property
    def sent(self) -> str:
        """Without colours and moves of the cursor: the screens below one another."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.raw.decode(errors="ignore")).replace("\r\n", "\n")

    def until(self, text: str | None = None) -> str:
        """What was sent until `text` was there, or to the end."""
        begun = time.time()
        while text is None or text not in self.sent:
            assert time.time() < begun + 30, self.sent[-2000:]
            try:
                read = os.read(self.parent, 65536)
            except OSError:  # the end of a terminal on Linux
                read = b""
            if not read:
                assert text is None, self.sent
                break
            self.raw += read
        return self.sent

    def end(self) -> int:
        self.until()
        os.close(self.parent)
        return self.process.wait()


def watched(folder: Path, width: int, capsys, monkeypatch, *flags: str) -> tuple[list[str], str]:
    """Lines that are printed where output is no terminal, and what is said on stderr."""
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["inspect", "--watch", str(folder), *flags]) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


# -------------------------------------------------------------------------------------------------------- the screen


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_by_hand(folder, width, capsys, monkeypatch):
    # on another machine, as a process of this one can't be older than it is
    say_it_trains(folder, host="node-7", since=f"{datetime.now() - timedelta(seconds=600):%Y-%m-%d %H:%M:%S}")
    lines, err = watched(folder, width, capsys, monkeypatch)
    assert err == "trl-knapsack inspect: output is not a terminal, so the run is shown once.\n"
    assert max(map(len, lines)) <= width
    # two steps took ten minutes, six are left
    assert re.match(r"step 2 of 8   0:30:\d\d left   epoch 0.50   80 rollouts", lines[1])
    assert lines[1].endswith("   3 prompts") == (width > 60)
    assert lines[2] == "━" * (width // 4) + "─" * (width - width // 4)

    rows = [line.split() for line in lines]
    numbers = {tuple(row[:3]): [cell for cell in row[3:] if "█" not in cell] for row in rows if row[1:2] == ["-"]}
    # believed now: hard 1 / (2 + 64), half 0.5, solved (1 + 2) / (2 + 2)
    prompts = {key: int(cells[0]) for key, cells in numbers.items()}
    assert {key[0]: n for key, n in prompts.items() if n} == {"0.0": 1, "0.5": 1, "0.7": 1} and len(prompts) == 10
    budgets = {key[0]: cells[1] for key, cells in numbers.items()}
    # believed then: 0.5 of all three at first, and of `half` again, 1 / 32 of `hard`
    assert {key: b for key, b in budgets.items() if b != "-"} == {"0.0": "34.0", "0.5": "11.5"}
    bars = {row[0]: row[-1].count("█") for row in rows if row[0:1] in (["0.0"], ["0.5"])}
    assert bars["0.0"] > bars["0.5"] >= 1

    assert "1 of 3 prompts are stuck; they took 80.0% of the rollouts." in " ".join(lines)
    batches = [row for row in rows if row[:1] in (["1"], ["2"]) and len(row) == 6]
    #                   success rates 0, 0.5, 1;  8 of 40 rollouts are in a mixed group
    assert batches == [["1", "0.500", "0.20", "2", "30", "40"], ["2", "0.250", "0.15", "6", "34", "40"]]


def test_a_look_is_no_budget_and_the_rest_has_it(folder, capsys, monkeypatch):
    """Of `new` only a look was taken; `half` had one of 4 in the batch before, and now gets 6 more."""
    looked = json.loads(line_of(3, [("half", 8, 8, 2, 6, 3), ("new", 1, 1, 0, 3, 1)]))
    with open(folder / RECORDS, "a") as file:
        file.write(json.dumps(looked | {"looks": [0, 1], "before": [4, 0]}) + "\n")
    lines, _ = watched(folder, 80, capsys, monkeypatch)
    # believed 0.5: 30, 8 and 2 at first, then 6, and now 10 of `half`
    assert [line.split()[-2] for line in lines if line.strip().startswith("0.5 - 0.6")] == ["11.2"]
    assert lines[-1].split() == ["3", "0.417", "1.00", "10", "10", "9"]


def test_what_makes_a_prompt_stuck_is_an_option(folder, capsys, monkeypatch):
    lines, _ = watched(folder, 80, capsys, monkeypatch, "--stuck_after", "65")
    assert "None of the 3 prompts is stuck." in "\n".join(lines)


def test_a_run_that_is_not_under_way_is_shown_once(folder, capsys, monkeypatch):
    lines, err = watched(folder, 80, capsys, monkeypatch)
    assert err == f"trl-knapsack inspect: no run is under way in {folder}; it is shown once.\n"
    assert lines[1] == "step 2   epoch 0.50   80 rollouts   3 prompts"  # it is not known of how many, nor how long
    terminal = Terminal(folder)
    assert "it is shown once" in terminal.until() and "step 2   epoch" in terminal.sent and terminal.end() == 0
    (folder / RECORDS).unlink()
    assert main(["inspect", "--watch", str(folder)]) == 1
    assert capsys.readouterr().err == f"trl-knapsack inspect: {folder} has no record of a generation batch yet.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN/../rum"], "rum does not exist; did you mean '"),
        (["RUN/knapsack_records.jsonl"], "knapsack_records.jsonl is a file; --watch follows a run, so name its folder."),
        (["RUN", "--json"], "--watch shows one screen without prompts; leave out --json, or --watch."),
        (["RUN", "--dataset_name", "d"], "--watch shows one screen without prompts; leave out --dataset_name, or --watch."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(folder, capsys, arguments, message):
    assert main(["inspect", "--watch", *(word.replace("RUN", str(folder)) for word in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ in a terminal


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 50)])
def test_a_run_is_followed_to_its_end(folder, width, height):
    lines = (folder / RECORDS).read_text().splitlines(keepends=True)
    (folder / RECORDS).unlink()
    say_it_trains(folder)
    terminal = Terminal(folder, width, height)
    terminal.until("Waiting for the first generation batch.")
    for step, line in enumerate(lines, 1):
        with open(folder / RECORDS, "a") as file:
            file.write(line)
        terminal.until(f"step {step} of 8")
    (folder / HOLDER).unlink()
    assert terminal.end() == 0
    last = terminal.sent[terminal.sent.rindex("step 2 of 8") :]
    assert "The run has ended." in last and "left" not in last and " 2    0.250            0.15" in last
    assert max(len(line.split("\r")[-1]) for line in terminal.sent.splitlines()) <= width
    assert last.count("\n") < height


def test_a_long_run_has_room_in_a_short_terminal(folder):
    """As many of the last batches as there is room for."""
    (folder / RECORDS).write_text("".join(line_of(step, FIRST) for step in range(1, 101)))
    say_it_trains(folder, max_steps=200)
    terminal = Terminal(folder, 80, 24)
    terminal.until("\n 100    0.500")
    (folder / HOLDER).unlink()
    assert terminal.end() == 0
    last = terminal.sent[terminal.sent.rindex("step 100 of 200") :]
    assert "\n 100    0.500" in last and "\n  99    0.500" in last and last.count("\n") < 24


def test_ctrl_c_ends_it(folder):
    say_it_trains(folder)
    terminal = Terminal(folder)
    terminal.until("step 2 of 8")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.sent


def test_a_run_that_is_killed_is_over(folder):
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.1)
    say_it_trains(folder, pid=run.pid, since=(datetime.now() + timedelta(seconds=1)).isoformat(" ", "seconds"))
    terminal = Terminal(folder)
    terminal.until("step 2 of 8")
    run.kill()
    run.wait()
    assert terminal.end() == 0
    assert f"The run was killed: process {run.pid} on " in terminal.sent


# ---------------------------------------------------------------------------------------------------- what it reads


def test_reading_on_is_reading_anew(tmp_path, folder):
    """Whatever part of a line is there at the time."""
    text = (folder / RECORDS).read_bytes()
    file = tmp_path / RECORDS
    file.touch()
    reader = HistoryReader(file)
    for end in [*range(0, len(text), 37), len(text)]:
        file.write_bytes(text[:end])
        history, anew = reader.read(), RolloutHistory.load(file)
        assert history.keys == anew.keys
        for name in ("step", "batch", "prompt", "counts", "alpha", "mixed"):
            assert getattr(history, name).tolist() == getattr(anew, name).tolist()
    assert len(history) == 2
    file.write_text(line_of(7, SECOND))  # another run
    assert reader.read().step.tolist() == [7] and reader.read().keys == ("hard", "half")
    with open(file, "a") as more:
        more.write("{}\n")
    with pytest.raises(ValueError, match="Line 2 of .* is not a generation batch"):
        reader.read()


def test_a_run_says_how_far_it_will_go(model, tmp_path):
    script = textwrap.dedent(f"""
        import sys
        import tiny
        from runs import options
        from transformers import TrainerCallback
        from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
        class Show(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                print(open({str(tmp_path / HOLDER)!r}).read(), flush=True)
        args = KnapsackGRPOConfig(**options({str(tmp_path)!r}, max_steps=1))
        KnapsackGRPOTrainer({model!r}, tiny.digit_reward, args, tiny.prompts(), callbacks=[Show()]).train()
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "tests", capture_output=True, text=True, timeout=120, check=True
    )
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"pid"')))
    assert (said["step"], said["max_steps"], said["host"]) == (0, 1, socket.gethostname())
    assert not (tmp_path / HOLDER).exists()


def test_who_trains_is_read_with_care(folder):
    assert RunHolder.read(folder) is None
    say_it_trains(folder)
    holder = RunHolder.read(folder)
    assert (holder.pid, holder.step, holder.max_steps) == (os.getpid(), 0, 8)
    for damaged in ("", "[]", "null", '{"pid": 1}', '{"pid": "x", "host": "h", "since": "now"}', "[" * 100_000):
        (folder / HOLDER).write_text(damaged)
        assert RunHolder.read(folder) is None
    say_it_trains(folder, host="elsewhere", pid=1)
    assert not RunHolder.read(folder).is_gone()  # nobody can know
    say_it_trains(folder, pid=2**40)
    assert RunHolder.read(folder).is_gone()
    say_it_trains(folder, since="2001-01-01 00:00:00")  # a process of the same id began later
    assert RunHolder.read(folder).is_gone()
