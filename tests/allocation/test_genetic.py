import builtins
import re

import numpy as np
import pytest

from trl_knapsack.allocation import allocate, expected_values
from trl_knapsack.errors import install_command


RATES = np.array([0.1, 0.3, 0.3, 0.7, 0.95, 0.0])


def test_coupled_values_beat_the_allocation_that_ignores_the_coupling():
    pytest.importorskip("pymoo")
    topics = np.array([0, 0, 0, 1, 1, 2])

    def value(counts):
        """What each topic adds saturates: prompts of one topic teach the same."""
        return float(np.sqrt(np.bincount(topics, expected_values(RATES, counts, "mixed"))).sum())

    found = allocate(RATES, 48, max_generations=20, value=value, solver="genetic", seed=3)
    assert found.solver == "genetic" and found.counts.sum() == 48
    assert found.counts.min() >= 2 and found.counts.max() <= 20
    assert found.value == value(found.counts) >= value(allocate(RATES, 48, max_generations=20, value="mixed").counts)
    assert found.upper_bound == np.inf
    again = allocate(RATES, 48, max_generations=20, value=value, solver="genetic", seed=3)
    assert again.counts.tolist() == found.counts.tolist()


def test_uncoupled_values_are_found_too():
    pytest.importorskip("pymoo")
    exact = allocate(RATES, 36, max_generations=12)
    found = allocate(
        RATES, 36, max_generations=12, value=lambda counts: expected_values(RATES, counts).sum(), solver="genetic"
    )
    assert found.value == pytest.approx(exact.value, rel=1e-9)


def test_missing_library_is_named(monkeypatch):
    real = builtins.__import__

    def no_pymoo(name, *args, **kwargs):
        if name.startswith("pymoo"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pymoo)
    with pytest.raises(ImportError, match=re.escape(install_command("genetic"))):
        allocate(RATES, 36, value=lambda counts: 0.0, solver="genetic")
