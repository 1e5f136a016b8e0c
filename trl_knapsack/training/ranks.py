"""Ranks that would diverge are stopped together, with one sentence, instead of waiting for each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback


class RankAgreement(TrainerCallback):
    """
    Refuses to train if the ranks were not given the same, once, when training begins.

    Rank 0 decides each allocation and all ranks use it, but every rank reads its own options, rows and success rates: on
    several nodes these are different files.

    Args:
        shared (`Callable[[], dict[str, Any]]`): What this rank holds, by name; small values that can be compared.
    """

    def __init__(self, shared: Callable[[], dict[str, Any]]):
        self.shared = shared

    def on_train_begin(self, args, state, control, **kwargs):
        with all_ranks_or_none():
            mine = self.shared()
        first, *others = gather_object([mine])
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise RuntimeError(
                        f"{name} is {other[name]!r} on rank {rank} but {value!r} on rank 0, and must be the same on all "
                        "ranks; start every rank with the same options, dataset and checkpoint."
                    )


@contextmanager
def all_ranks_or_none() -> Iterator[None]:
    """
    What fails on one rank within the block is raised on all of them, so that none waits for one that has stopped.

    Raises:
        `RuntimeError`: on the other ranks, with the error of the first rank that failed.
    """
    error = None
    try:
        yield
    except Exception as e:
        error = e
    failures = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RuntimeError(f"Rank {rank} can't go on, so no rank does. {failure}")
