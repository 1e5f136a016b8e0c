"""
What the success rates of many prompts cost: the size of their file, and the time to save and to load it: processor seconds,
which other work on the machine hardly lengthens, and seconds by the clock. A plain write to the disk and a plain read of the same
bytes are timed beside, in turn.

    python benchmarks/state.py
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trl_knapsack import SuccessRateTracker
from trl_knapsack.tracking import prompt_key


def filled(prompts: int) -> SuccessRateTracker:
    """A tracker that has met so many prompts, under the keys of rows, once or more often."""
    tracker, rng = SuccessRateTracker(), np.random.default_rng(0)
    keys = [prompt_key({"prompt": f"prompt {number}"}) for number in range(prompts)]
    trials = rng.integers(2, 64, prompts)
    tracker.observe(keys, rng.binomial(trials, rng.random(prompts)), trials, tokens=trials * 500)
    return tracker


def write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of the processor, and by the clock."""
    processor, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    tracker, times = filled(options.prompts), {"save": [], "write": [], "load": [], "read": []}
    with tempfile.TemporaryDirectory() as folder:
        state, plain = Path(folder, "state.safetensors"), Path(folder, "plain")
        for _ in range(options.repeats):
            times["save"].append(seconds(lambda: tracker.save(state)))
            content = state.read_bytes()
            times["write"].append(seconds(lambda content=content: write(plain, content)))
            times["load"].append(seconds(lambda: SuccessRateTracker().load(state)))
            times["read"].append(seconds(plain.read_bytes))
        size = state.stat().st_size
    median = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    load = os.getloadavg()[0]
    print(f"{options.prompts:,} prompts: {size / 1e6:.0f} MB, {size / options.prompts:.0f} bytes a prompt")
    for name, plain in (("save", "write"), ("load", "read")):
        (processor, clock), (_, of_plain) = median[name], median[plain]
        print(
            f"{name}: {processor:.2f} s of the processor, {clock:.2f} s by the clock; a plain {plain} {of_plain:.2f} s"
        )
    print(f"medians of {options.repeats}; {load:.1f} processes wanted one of {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
