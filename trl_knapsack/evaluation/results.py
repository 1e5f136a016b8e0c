"""The results of an evaluation for every problem: saved as JSON lines, summarised, and compared with another run's."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import overload

import numpy as np

from .._notebook import html_table
from ..errors import InvalidInputError, MissingFileError
from .statistics import Interval, bootstrap_interval, majority_at_k, mcnemar, paired_bootstrap, pass_at_k, wilcoxon


@dataclass(frozen=True)
class ProblemResult:
    """
    Completions of one problem that have a reward.

    Attributes:
        id (`str`): The problem, the same in every run.
        rewards (`tuple[float, ...]` of length `n`): Reward of each completion. One without a reward is not here.
        answers (`tuple[str | None, ...]` of length `n`, *optional*): What each completion votes for in maj@k; `None`
            for nothing.
        completions (`tuple[str, ...]` of length `n`, *optional*): Texts.
        threshold (`float`, *optional*, defaults to `0.5`): A completion succeeds if its reward is at least this.
        tokens (`int`, *optional*): Tokens of these completions together.
    """

    id: str
    rewards: tuple[float, ...]
    answers: tuple[str | None, ...] | None = None
    completions: tuple[str, ...] | None = None
    threshold: float = 0.5
    tokens: int | None = None

    @property
    def successes(self) -> tuple[bool, ...]:
        """Whether each completion succeeds."""
        return tuple(reward >= self.threshold for reward in self.rewards)

    @property
    def n(self) -> int:
        """Completions."""
        return len(self.rewards)

    @property
    def c(self) -> int:
        """Completions that succeed."""
        return sum(self.successes)

    def as_line(self) -> dict:
        """What a line of a file of results holds of it."""
        line = {"id": self.id, "n": self.n, "c": self.c, "rewards": self.rewards, "threshold": self.threshold}
        known = {name: getattr(self, name) for name in ("tokens", "answers", "completions")}
        return line | {name: value for name, value in known.items() if value is not None}

    def majority_at_k(self, k: int) -> float:
        """maj@k of this problem, see [`majority_at_k`]. An answer is as right as the completions that gave it on average."""
        if self.answers is None:
            raise InvalidInputError(
                f"Problem {self.id!r} has no answers to vote with; give `evaluate_policy` an `answer_func`."
            )
        by_answer = defaultdict(list)
        for answer, success in zip(self.answers, self.successes, strict=True):
            by_answer[answer].append(success)
        abstentions = len(by_answer.pop(None, []))
        votes = [len(successes) for successes in by_answer.values()]
        success = [sum(successes) / len(successes) for successes in by_answer.values()]
        return majority_at_k(votes, success, k, abstentions)


class EvaluationResults(Sequence[ProblemResult]):
    """
    Results of one run over a set of problems, as a sequence of [`ProblemResult`].

    Args:
        problems (`Iterable[ProblemResult]`): One per problem, with different ids.

    Raises:
        `ValueError`: if two problems have the same id.
    """

    def __init__(self, problems: Iterable[ProblemResult]):
        self.problems = tuple(problems)
        seen = set()
        for problem in self.problems:
            if problem.id in seen:
                raise InvalidInputError(
                    f"Two problems have the id {problem.id!r}; drop one, or name a column of unique ids with prompt_id_column."
                )
            seen.add(problem.id)

    def __len__(self) -> int:
        return len(self.problems)

    @overload
    def __getitem__(self, index: int) -> ProblemResult: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ProblemResult, ...]: ...

    def __getitem__(self, index):
        return self.problems[index]

    def __repr__(self) -> str:
        completions = sum(problem.n for problem in self)
        right = f", {sum(problem.c for problem in self) / completions:.1%} right" if completions else ""
        return f"EvaluationResults({len(self)} problems, {completions} completions{right})"

    def _repr_html_(self) -> str:
        scored = self.scored()
        numbers = scored.summary() if len(scored) > 1 else {}
        rows = [[name, f"{it.estimate:.3f}", f"{it.low:.3f} - {it.high:.3f}"] for name, it in numbers.items()]
        return f"<p>{escape(repr(self))}</p>" + html_table(["metric", "mean", "95 % interval"], rows)

    def save(self, path: str | Path) -> None:
        """
        Write one JSON line per problem: `id`, `n`, `c`, `rewards`, `threshold`, and `tokens`, `answers` and `completions`
        where known. [`KnapsackGRPOConfig`] takes the file as `success_state_path`.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for problem in self.problems:
                file.write(json.dumps(problem.as_line(), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, success_threshold: float | None = None) -> "EvaluationResults":
        """
        Read what [`save`] wrote, or a file of another tool: lines with `id` and either `rewards` or `n` and `c`.

        Args:
            path (`str` or `Path`): The file.
            success_threshold (`float`, *optional*):
                A completion succeeds if its reward is at least this. By default the threshold of each line, and 0.5
                for a line without one. `n` and `c` are counted already, so it does not change them.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if a line is not such a result; names the line.
        """
        if not Path(path).is_file():
            raise MissingFileError(f"There is no file {path}; name one that an evaluation wrote.")
        problems = []
        with Path(path).open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    try:
                        problems.append(problem_of_line(json.loads(text), success_threshold))
                    except (KeyError, TypeError, ValueError) as error:
                        raise InvalidInputError(
                            f"{path}, line {number}: not a result ({type(error).__name__}: {error}); every line needs "
                            "an id, and either rewards or n and c."
                        ) from error
        return cls(problems)

    def scores(self, ks: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """
        Per-problem numbers behind [`summary`], for tests and plots of your own.

        Args:
            ks (`Sequence[int]`, *optional*): Values of k; by default the powers of two above 1 that all problems have
                completions for, and that number itself.

        Returns:
            `dict[str, np.ndarray]`: `"avg@n"`, then `"pass@k"` for each k and `"maj@k"` for each k above 2, of
            shape `(P,)`. `n` is the smallest number of completions of a problem; all of a problem's completions are used.

        Raises:
            `ValueError`: if there are no problems, one has no completion with a reward, or a k is too large.
        """
        if not self.problems:
            raise InvalidInputError("There are no problems to summarise; evaluate at least one.")
        empty = [problem.id for problem in self.problems if not problem.n]
        if empty:
            raise InvalidInputError(
                f"{len(empty)} problems have no completion with a reward, the first is {empty[0]!r}; remove them with "
                "`results.scored()`."
            )
        n, c = np.array([(problem.n, problem.c) for problem in self.problems]).T  # (P,), (P,)
        least = int(n.min())
        if ks is None:
            ks = _default_ks(least)
        scores = {f"avg@{least}": c / n}
        scores |= {f"pass@{k}": pass_at_k(n, c, k) for k in ks}
        if all(problem.answers is not None for problem in self.problems):
            # Two votes are a tie or agree, so maj@2 is avg@2, as is maj@1.
            scores |= {f"maj@{k}": np.array([p.majority_at_k(k) for p in self.problems]) for k in ks if k > 2}
        return scores

    def scored(self) -> "EvaluationResults":
        """These results without the problems that have no completion with a reward."""
        return EvaluationResults(problem for problem in self.problems if problem.n)

    def summary(
        self, ks: Sequence[int] | None = None, *, confidence_level: float = 0.95, seed: int | None = 0
    ) -> dict[str, Interval]:
        """
        Means over the problems with bootstrap intervals, in the order of [`scores`].

        Returns:
            `dict[str, Interval]`: for example `{"avg@8": ..., "pass@2": ..., "pass@8": ..., "maj@8": ...}`.
        """
        return {
            name: bootstrap_interval(values, confidence_level=confidence_level, seed=seed)
            for name, values in self.scores(ks).items()
        }


def _default_ks(n: int) -> list[int]:
    """Powers of two above 1 up to `n`, and `n`."""
    return sorted({2**i for i in range(1, n.bit_length())} | ({n} - {1}))


def problem_of_line(line: dict, threshold: float | None = None) -> ProblemResult:
    """
    The result in a line of a file of results.

    Raises:
        `KeyError`, `TypeError`, `ValueError`: if it is none.
    """
    if "rewards" in line:
        rewards = tuple(float(reward) for reward in line["rewards"])
        threshold = float(line.get("threshold", 0.5) if threshold is None else threshold)
    else:
        threshold = 0.5
        n, c = line["n"], line["c"]
        if not 0 <= c <= n:
            raise ValueError(f"c ({c}) must be between 0 and n ({n})")
        rewards = (1.0,) * c + (0.0,) * (n - c)
    columns = {name: tuple(line[name]) for name in ("answers", "completions") if line.get(name) is not None}
    for name, values in columns.items():
        if len(values) != len(rewards):
            raise ValueError(f"{len(values)} {name} for {len(rewards)} rewards")
    tokens = None if line.get("tokens") is None else int(line["tokens"])
    return ProblemResult(str(line["id"]), rewards, threshold=threshold, tokens=tokens, **columns)


@dataclass(frozen=True, repr=False)
class Comparison:
    """
    Two runs on the same problems, first minus second. Made by [`compare`]; `print` shows the table.

    Attributes:
        problems (`int`): Problems that both have.
        left_out (`int`): Problems that only one has, or that have no reward in one: not compared.
        estimates (`dict[str, tuple[float, float]]`): Means of the first and the second run, by `"avg@n"`, `"pass@k"`
            and `"maj@k"`.
        differences (`dict[str, Interval]`): First minus second, with the paired bootstrap's interval.
        wilcoxon (`dict[str, float]`): `stat` and `p` of the signed-rank test on success rates.
        mcnemar (`dict[str, float]`): `stat`, `p`, `only1` and `only2` of the exact test on problems that are solved at
            least once in the first `n` completions.
        n (`int`): Smallest number of completions of a problem in either run.
    """

    problems: int
    left_out: int
    estimates: dict[str, tuple[float, float]]
    differences: dict[str, Interval]
    wilcoxon: dict[str, float]
    mcnemar: dict[str, float]
    n: int
    names: tuple[str, str] = field(default=("first", "second"))

    def to_dict(self) -> dict:
        """Plain dictionary, for JSON."""
        return asdict(self)

    def columns(self) -> list[str]:
        """Heads of [`rows`]."""
        level = next(iter(self.differences.values())).confidence_level
        return ["", *self.names, f"difference, {level:.0%} interval"]

    def rows(self) -> list[list[str]]:
        """A row of text for each estimate: its name, both runs, and the difference."""
        return [
            [
                name,
                *(f"{mean:.3f}" for mean in self.estimates[name]),
                f"{it.estimate:+.3f} [{it.low:+.3f}, {it.high:+.3f}]",
            ]
            for name, it in self.differences.items()
        ]

    def sentences(self) -> list[str]:
        """What the two tests say."""
        first, second = self.names
        once = "solved" if self.n == 1 else f"solved at least once in {self.n}"
        left_out = f" ({self.left_out} left out)" if self.left_out else ""
        return [
            f"Wilcoxon   success rates of {self.problems} problems{left_out}: p = {self.wilcoxon['p']:.3g}",
            f"McNemar    {once}: {self.mcnemar['only1']} only by {first}, {self.mcnemar['only2']} only by {second}: "
            f"p = {self.mcnemar['p']:.3g}",
        ]

    def __str__(self) -> str:
        width = max(8, *map(len, self.names))
        lines = [f"{a:<10}{b:>{width}}  {c:>{width}}   {d}" for a, b, c, d in [self.columns(), *self.rows()]]
        return "\n".join([*lines, *self.sentences()])

    def __repr__(self) -> str:
        name, interval = next(iter(self.differences.items()))
        return f"Comparison({self.names[0]!r} - {self.names[1]!r}, {self.problems} problems, {name} {interval.estimate:+.3f})"

    def _repr_html_(self) -> str:
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences())
        return html_table(self.columns(), self.rows()) + sentences


def compare(
    results_a: EvaluationResults,
    results_b: EvaluationResults,
    ks: Sequence[int] | None = None,
    *,
    names: tuple[str, str] = ("first", "second"),
    confidence_level: float = 0.95,
    seed: int | None = 0,
) -> Comparison:
    """
    Compare two runs problem by problem: paired bootstrap of every difference, Wilcoxon's test of the success rates and
    McNemar's of the problems solved at least once. It says whether these two checkpoints differ, not whether two methods
    do: that takes several training seeds.

    Args:
        results_a (`EvaluationResults`): First run.
        results_b (`EvaluationResults`): Second run, on the same problems.
        ks (`Sequence[int]`, *optional*): See [`EvaluationResults.scores`].
        names (`tuple[str, str]`, *optional*): What to call them in the table.
        confidence_level, seed: See [`bootstrap_interval`].

    Returns:
        [`Comparison`]

    Raises:
        `ValueError`: if fewer than two problems are in both.
    """
    others = {problem.id: problem for problem in results_b}
    pairs = [(a, others[a.id]) for a in results_a if a.id in others]
    pairs = [(a, b) for a, b in pairs if a.n and b.n]
    if len(pairs) < 2:
        example = (
            f"for example {results_a[0].id!r} and {results_b[0].id!r}" if results_a and results_b else "none at all"
        )
        raise InvalidInputError(
            f"The runs have {len(pairs)} problems in common, of {len(results_a)} and {len(results_b)} ({example}); paired "
            "tests need at least two. Evaluate both on the same problems, with the same prompt_id_column."
        )
    n = min(min(a.n, b.n) for a, b in pairs)
    # Named after the completions that both runs have, whichever more one of them has.
    a_scores, b_scores = (
        {f"avg@{n}" if name.startswith("avg@") else name: values for name, values in scores.items()}
        for scores in (EvaluationResults(run).scores(ks or _default_ks(n)) for run in zip(*pairs, strict=True))
    )
    shared = [name for name in a_scores if name in b_scores]
    rates = f"avg@{n}"
    ids = {a.id for a in results_a} | others.keys()
    return Comparison(
        problems=len(pairs),
        left_out=len(ids) - len(pairs),
        estimates={name: (float(a_scores[name].mean()), float(b_scores[name].mean())) for name in shared},
        differences={
            name: paired_bootstrap(a_scores[name], b_scores[name], confidence_level=confidence_level, seed=seed)
            for name in shared
        },
        wilcoxon=wilcoxon(a_scores[rates], b_scores[rates]),
        # The first n of each, since a run with more completions would solve more problems at least once.
        mcnemar=mcnemar([any(a.successes[:n]) for a, _ in pairs], [any(b.successes[:n]) for _, b in pairs]),
        n=n,
        names=names,
    )
