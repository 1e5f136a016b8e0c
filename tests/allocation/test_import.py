import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_well_below_a_second():
    seconds = [
        float(
            run("import time; t = time.perf_counter(); import trl_knapsack.allocation; print(time.perf_counter() - t)")
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.6
