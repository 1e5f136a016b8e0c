import subprocess
import sys


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_well_below_a_second():
    seconds = [
        # processor time, which other work on the machine does not lengthen
        float(run("import time; import trl_knapsack.allocation; print(time.process_time())"))
        for _ in range(3)
    ]
    assert min(seconds) < 0.6
