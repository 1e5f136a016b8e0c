"""Settings of the allocator's tests."""

import os

import numba
import pytest
from hypothesis import HealthCheck, Phase, settings

from trl_knapsack.allocation import kernels


COMPILED = not numba.config.DISABLE_JIT

# The same examples in every run. Without compilation fewer, because each takes longer.
settings.register_profile(
    "allocation",
    max_examples=int(os.environ.get("ALLOCATION_EXAMPLES", 200 if COMPILED else 30)),
    deadline=None,
    derandomize=True,
    # For mutmut it is enough that an example fails; it need not be made small.
    phases=[p for p in Phase if p not in (Phase.shrink, Phase.explain) or "MUTANT_UNDER_TEST" not in os.environ],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("allocation")

# Few of these problems are large enough to be compiled of themselves.
kernels.expect(kernels.PATIENCE + 1)


def pytest_collection_modifyitems(items):
    if not COMPILED:
        for item in items:
            if item.get_closest_marker("compiled"):
                item.add_marker(pytest.mark.skip(reason="too slow without compilation"))


def pytest_configure(config):
    config.addinivalue_line("markers", "compiled: too slow with NUMBA_DISABLE_JIT=1, skipped there")
