import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["values", "solvers", "allocation", "policies", "explain"])
def test_the_allocator_loads_neither_torch_nor_trl(module):
    loaded = run(
        f"import sys, trl_knapsack.{module}\n"
        "print([m for m in ('torch', 'trl', 'transformers', 'scipy', 'pymoo', 'matplotlib') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_import_takes_well_below_a_second():
    seconds = [
        float(
            run("import time; t = time.perf_counter(); import trl_knapsack.allocation; print(time.perf_counter() - t)")
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.6
