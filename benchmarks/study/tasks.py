"""
The study's tasks: problems of graded difficulty, exact verifiers, and regimes of them.

| task | prompt | accepted completions |
|---|---|---|
| arithmetic | `305-187=` | `118` |
| countdown | `3,5,14>29:` | `3*5+14`, `14+3*5`, ...: each number once, the target reached |
| sorting | `dbca>` | `[dcba]`: the letters in the asked order, within brackets |
| sums | `14+3+25=` | `17,42`: all running sums, so that hard problems have long answers; only for the cost of tokens |

Accepted completions are few and can be listed, so the chance that a policy succeeds is computed, not sampled.
"""

import functools
import itertools
import json
import random
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "examples"))

import make_math_policy  # noqa: E402
import numpy as np  # noqa: E402


POLICIES = HERE / "policies"
REGIMES = ("saturated", "broad", "hard")
SINGLE_EPOCH = "once"  # the saturated regime with as many problems as 160 steps draw, held out as there
RARE = "rare"  # problems that are next to never solved, of which sorting has too few
ALL_REGIMES = (*REGIMES, SINGLE_EPOCH)
NUM_TRAIN, NUM_HELD_OUT = 480, 320
NUM_TRAIN_ONCE = 2880


@dataclass(frozen=True)
class Problem:
    """One problem: its prompt, all completions that solve it, and what a careless teacher would write instead."""

    prompt: str
    solutions: tuple[str, ...]
    mistake: str


@dataclass(frozen=True)
class Task:
    """
    A family of problems.

    Args:
        alphabet (`str`): Characters of prompts and completions.
        draw (`Callable[[random.Random], tuple[Problem, float]]`): A problem, and how often the careless teacher errs at
            one like it; rates graded from 0 to 1 give a policy whose success rates spread from 1 to 0.
        max_completion_length (`int`): Tokens of the longest completion, its end included.
        warm_up_steps (`int`): Steps of the policy's supervised training.
        careless_share (`float`): Share of these steps with the careless teacher.
        regimes (`tuple[str, ...]`): Its regimes.
    """

    alphabet: str
    draw: Callable[[random.Random], tuple[Problem, float]]
    max_completion_length: int
    warm_up_steps: int
    careless_share: float
    regimes: tuple[str, ...] = ALL_REGIMES


# --- arithmetic: the kinds of problems of the demo, where a careless teacher forgets carries, borrows, parentheses ----

_CARELESS = {
    "add2": (0.0, 0.4),
    "sub2": (0.0, 0.5),
    "mul2": (0.2, 0.8),
    "add3": (0.3, 0.97),
    "sub3": (0.4, 0.98),
    "sum3": (0.2, 0.9),
    "mixed": (0.3, 0.98),
    "paren": (0.3, 0.98),
}


def _arithmetic(rng: random.Random) -> tuple[Problem, float]:
    name = rng.choice(list(_CARELESS))
    state = rng.getstate()
    prompt, answer = make_math_policy.KINDS[name].make(rng.randint, lambda: False)
    rng.setstate(state)  # the same operands
    _, mistake = make_math_policy.KINDS[name].make(rng.randint, lambda: True)
    return Problem(prompt, (str(answer),), str(mistake)), _graded(prompt[0], _CARELESS[name])


# --- countdown: three numbers and a target ----------------------------------------------------------------------------


@functools.cache
def _expressions(numbers: tuple[int, ...]) -> dict[str, int]:
    """All that can be written with each number once, and its value."""
    written = (
        f"{order[0]}{first}{order[1]}{second}{order[2]}"
        for order in itertools.permutations(numbers)
        for first, second in itertools.product("+-*", repeat=2)
    )
    return {expression: eval(expression) for expression in written}


def _countdown(rng: random.Random) -> tuple[Problem, float]:
    numbers = tuple(sorted(rng.randint(1, 23) for _ in range(3)))
    expressions = _expressions(numbers)
    targets = sorted({value for value in expressions.values() if 0 < value < 1000})
    target = rng.choice(targets)
    solutions = tuple(sorted(expression for expression, value in expressions.items() if value == target))
    slips = (sign.join(map(str, numbers)) for sign in "+*-")  # adds everything, whatever the target is
    mistake = next(slip for slip in slips if expressions[slip] != target)
    prompt = f"{','.join(map(str, numbers))}>{target}:"
    times = min(expression.count("*") for expression in solutions)
    bounds = ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0))[times]
    return Problem(prompt, solutions, mistake), _graded(str(target)[0], bounds)


# --- sorting: letters in ascending (<) or descending (>) order, within brackets ---------------------------------------


def _sorting(rng: random.Random) -> tuple[Problem, float]:
    letters = "".join(rng.choices("abcdefghij", k=rng.randint(3, 8)))
    direction = rng.choice("<>")
    ordered = "".join(sorted(letters, reverse=direction == ">"))
    mistakes = [
        f"[{''.join(sorted(letters, reverse=direction == '<'))}]",  # the other direction
        f"[{''.join(sorted(set(letters), reverse=direction == '>'))}]",  # repeated letters dropped
        f"[{ordered}",  # no closing bracket
        f"[{letters[:2]}{''.join(sorted(letters[2:], reverse=direction == '>'))}]",  # the first two left where they are
    ]
    mistakes = [mistake for mistake in mistakes if mistake != f"[{ordered}]"]
    prompt = letters + direction
    bounds = (0.0, 0.4) if len(letters) < 5 else (0.0, 0.96) if direction == "<" else (0.3, 1.0)
    return Problem(prompt, (f"[{ordered}]",), rng.choice(mistakes)), _graded(prompt[0], bounds)


# --- sums: the working shown, a number for each addition --------------------------------------------------------------


def _sums(rng: random.Random) -> tuple[Problem, float]:
    terms = [rng.randint(1, 29) for _ in range(rng.randint(2, 6))]
    right = list(itertools.accumulate(terms))
    slip = rng.randrange(1, len(terms))  # where the careless teacher is one ten short
    wrong = right[:slip] + [value - 10 if value >= 20 else value + 10 for value in right[slip:]]
    prompt = "+".join(map(str, terms)) + "="
    bounds = ((0.0, 0.3), (0.1, 0.6), (0.2, 0.9), (0.3, 0.97), (0.4, 0.98))[len(terms) - 2]
    solution, mistake = (",".join(map(str, sums[1:])) for sums in (right, wrong))
    return Problem(prompt, (solution,), mistake), _graded(prompt[0], bounds)


def _graded(character: str, bounds: tuple[float, float]) -> float:
    """How often the careless teacher errs: between the bounds, by a character of the prompt, which a policy sees."""
    low, high = bounds
    return low + (high - low) * (ord(character) % 4) / 3


TASKS = {
    "arithmetic": Task(
        "0123456789+-*()=", _arithmetic, 5, warm_up_steps=1500, careless_share=0.15, regimes=(*ALL_REGIMES, RARE)
    ),
    "countdown": Task(
        "0123456789+-*,>:", _countdown, 9, warm_up_steps=3500, careless_share=0.3, regimes=(*ALL_REGIMES, RARE)
    ),
    "sorting": Task("abcdefghij<>[]", _sorting, 11, warm_up_steps=1200, careless_share=0.5),
    "sums": Task("0123456789+,=", _sums, 20, warm_up_steps=1500, careless_share=0.3, regimes=("broad",)),
}
MAIN_TASKS = ("arithmetic", "countdown", "sorting")


def is_reserved(prompt: str) -> bool:
    """Whether a problem is kept from the policy's supervised training, for the regimes: three in ten."""
    return zlib.crc32(prompt.encode()) % 10 < 3


def reward(completions: list[str], solutions: list[list[str]], **kwargs) -> list[float]:
    """1 if the completion is one of the accepted ones to the letter, else 0."""
    return [float(completion in accepted) for completion, accepted in zip(completions, solutions, strict=True)]


def solve_rates(rows: list[dict], name: str) -> list[str]:
    """What a dataset could say of each problem: how many of eight completions solved it before training, as `"5/8"`."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return [f"{random.binomial(8, row['rate'])}/8" for row in rows]


def load_problems(task: str, regime: str, split: str) -> list[dict]:
    """Rows of a regime, each with `id`, `prompt`, `solutions` and `rate`, the bundled policy's chance to solve it."""
    if (regime, split) == (SINGLE_EPOCH, "test"):
        regime = "saturated"
    path = POLICIES / task / f"{regime}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["id"].startswith(split)]
