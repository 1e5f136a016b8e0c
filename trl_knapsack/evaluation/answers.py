"""What a completion votes for in maj@k: functions from the completions of one problem to their answers."""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

from ..errors import missing_extra


AnswerFunc = Callable[[Sequence[str]], list[str | None]]


def exact_answers(completions: Sequence[str]) -> list[str | None]:
    """
    The whole completion without the white space around it, for completions that are answers and nothing else. An empty
    one votes for nothing.
    """
    return [completion.strip() or None for completion in completions]


def math_answers(completions: Sequence[str]) -> list[str | None]:
    r"""
    The mathematical answers by math-verify, the boxed one first. Answers that math-verify takes for equal, as `0.5` and
    `\frac{1}{2}`, are one answer, under the name of whichever came first. A completion without an answer votes for
    nothing.

    Args:
        completions (`Sequence[str]`): Completions of one problem.

    Returns:
        `list[str | None]`: of the same length.

    Raises:
        `ImportError`: if math-verify is missing.
    """
    names: dict[str, str] = {}  # what math-verify made of a completion -> name of its answer
    known = []  # (name, parsed) of the answers so far
    answers = []
    for completion in completions:
        parsed = _parse(completion)
        if not parsed:
            answers.append(None)
            continue
        name = str(parsed[0])
        if name not in names:
            equal = (other for other, other_parsed in known if _verify(other_parsed, parsed))
            names[name] = next(equal, name)
            if names[name] == name:
                known.append((name, parsed))
        answers.append(names[name])
    return answers


def math_equal(completion: str, solution: str) -> bool:
    """
    Whether the mathematical answer of a completion is that of the solution, by math-verify; False if either has none.
    It is more lenient than TRL's `accuracy_reward`: numbers without LaTeX count, and malformed LaTeX is mended.
    """
    gold, answer = _parse(solution), _parse(completion)
    return bool(gold) and bool(answer) and _verify(gold, answer)


def _verify(gold: tuple, answer: tuple) -> bool:
    from math_verify import verify

    return verify(list(gold), list(answer), timeout_seconds=5 if _in_main_thread() else None)


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple:
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    except ImportError as error:
        raise missing_extra("Answers are found with math-verify", "math") from error

    latex = LatexExtractionConfig(boxed_match_priority=0)
    return tuple(
        parse(
            text,
            extraction_config=[latex, ExprExtractionConfig()],
            parsing_timeout=10 if _in_main_thread() else None,  # pyright: ignore[reportArgumentType]  # None is no limit
        )
    )


def _in_main_thread() -> bool:
    """math-verify stops what takes too long by a signal, which only the main thread gets."""
    return threading.current_thread() is threading.main_thread()
