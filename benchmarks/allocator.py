"""
How fast the allocator is, from 4 to 10 million prompts.

    python benchmarks/allocator.py                       # prints the table
    python benchmarks/allocator.py --write               # ... and writes it and the figure into docs/
    python benchmarks/allocator.py --published PATH      # ... and a checkout of the published implementation

It takes two to three minutes on an idle machine: 51 rows of `--seconds`, the larger ones more, and 23 fresh processes. On a busy
one the figures are worth little. A comparison with the published implementation is printed and not written, as
docs/allocator.md says it in words.

Every time is a median of repeated runs on one core, in one process. The unit that makes machines comparable is one warm
pass of `numpy.log` over 10 million doubles, timed between the runs.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trl_knapsack.allocation import BetaBeliefs, allocate, expected_values, kernels


DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
SIZES = (4, 16, 64, 256, 1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 4_000_000, 10_000_000)
KINDS = {"rates": "random rates", "eighths": "rates k/8", "beliefs": "beliefs"}
SHARE = 8  # rollouts a prompt


def problem(kind: str, prompts: int, seed: int = 0):
    """Success rates or beliefs of `prompts` prompts."""
    rng = np.random.default_rng(seed)
    if kind == "rates":
        return rng.random(prompts)
    if kind == "eighths":
        return rng.integers(0, 9, prompts) / 8
    return BetaBeliefs(0.5 + 8 * rng.random(prompts), 0.5 + 8 * rng.random(prompts))


def clock(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class LogPass:
    """Seconds of one `numpy.log` pass over 10 million doubles."""

    def __init__(self):
        self.values = np.random.default_rng(0).random(10_000_000)
        self.out = np.log(self.values)

    def __call__(self) -> float:
        return clock(lambda: np.log(self.values, out=self.out))


def measure(function, log_pass: LogPass, seconds: float, alternate: bool) -> tuple[float, float]:
    """Median time, and median ratio to a log pass taken right before (`alternate`) or once for all."""
    function()
    unit = np.median([log_pass() for _ in range(5)])
    times, ratios = [], []
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < seconds and len(times) < 1000):
        if alternate:
            unit = log_pass()
        times.append(clock(function))
        ratios.append(times[-1] / unit)
    return float(np.median(times)), float(np.median(ratios))


def growth(sizes: list[int], times: list[float]) -> float:
    """Exponent of the growth of time with prompts, fitted where fixed costs no longer show."""
    large = np.array(sizes) >= 16_000
    if large.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(np.array(sizes)[large]), np.log(np.array(times)[large]), 1)[0])


def first_call(share: int) -> tuple[float, float]:
    """Seconds from starting to import to an allocation of `share` rollouts for each of 256 prompts, in a new process: with
    an empty cache, and with what the first has left there."""
    code = (
        "import time\nt = time.perf_counter()\nfrom trl_knapsack.allocation import allocate, BetaBeliefs\n"
        f"allocate(BetaBeliefs([1.0] * 256, [2.0] * 256), {share} * 256, max_generations=4096)\n"
        "print(time.perf_counter() - t)"
    )
    colds, warms = [], []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
            for times in (colds, warms):
                run = subprocess.run(
                    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
                )
                times.append(float(run.stdout))
    return float(np.median(colds)), float(np.median(warms))


def memory(kind: str, prompts: int) -> float:
    """Bytes a prompt that `allocate` takes beside its input, counts included, at the peak (Linux only)."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from allocator import problem, SHARE\nfrom trl_knapsack.allocation import allocate\n"
        "def status(name):\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name)) * 1024\n"
        "kind, prompts = sys.argv[2], int(sys.argv[3])\n"
        "allocate(problem(kind, 100_000), SHARE * 100_000)\n"
        "known = problem(kind, prompts)\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = status('VmRSS')\n"
        "found = allocate(known, SHARE * prompts)\n"
        "print((status('VmHWM') - before) / prompts)\n"
    )
    here = str(Path(__file__).resolve().parent)
    run = subprocess.run([sys.executable, "-c", code, here, kind, str(prompts)], capture_output=True, text=True)
    return float(run.stdout) if run.returncode == 0 else float("nan")


def against_published(path: Path, log_pass: LogPass) -> list[str]:
    """Time the published dynamic program in this process, and check that our value is never lower."""
    (source,) = path.rglob("exploration_utils.py") if path.is_dir() else (path,)
    spec = importlib.util.spec_from_file_location("published", source)
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    rng = np.random.default_rng(0)

    def theirs(rates: np.ndarray, share: int) -> np.ndarray:
        states = np.column_stack([np.ones(rates.size), rates, np.full(rates.size, 8.0)])
        with contextlib.redirect_stdout(io.StringIO()):
            return published.sampling_budget_by_knapsack(states, share, 2, 128, allow_fallback=False)[0]

    checked, gained = 0, []
    for prompts in (8, 32, 64):
        for _ in range(20):
            rates = rng.integers(1, 16, prompts) / 16  # exact in the 32 bits that the published code keeps
            counts = theirs(rates, SHARE)
            value, best = expected_values(rates, counts).sum(), allocate(rates, SHARE * prompts).value
            if counts.max() > 128 or counts.sum() != SHARE * prompts:
                continue
            assert best >= value * (1 - 1e-12), f"the published allocation is worth {value}, ours {best}"
            checked += 1
            gained.append(best / value - 1)
    rates = rng.integers(1, 256, 256) / 256
    ours = measure(lambda: allocate(rates, SHARE * 256), log_pass, 1.0, False)[0]
    theirs(rates, SHARE)
    dp = float(np.median([clock(lambda: theirs(rates, SHARE)) for _ in range(3)]))
    return [
        f"Published dynamic program, 256 prompts and {SHARE * 256} rollouts: {_time(dp)}; here {_time(ours)}, "
        f"{dp / ours:,.0f} times faster. Over {checked} random instances its value was never higher than ours; ours was "
        f"higher by {max(gained):.2%} at most, because a prompt left at `min_generations` is credited nothing there.",
    ]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def figure(sizes: list[int], table: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for kind, color in zip(KINDS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        times = [row[0] for row in table[kind]]
        label = f"{KINDS[kind]}: {times[-1] / sizes[-1] * 1e9:.0f} ns a prompt at {sizes[-1]:,}"
        axes.loglog(sizes, times, "o-", color=color, label=label, markersize=4)
    end = [row[0] for row in table["rates"]][-1]
    axes.loglog(sizes, [end * 0.4 * n / sizes[-1] for n in sizes], color="0.6", linestyle=":", label="linear")
    axes.set(xlabel="prompts", ylabel="seconds", title=f"allocate, {SHARE} rollouts a prompt, one core")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of prompts")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row, at least five runs are made")
    parser.add_argument("--published", type=Path, help="checkout of the published implementation, to time it as well")
    parser.add_argument("--write", action="store_true", help="write table and figure into docs/")
    options = parser.parse_args()

    sizes = sorted(options.sizes)
    log_pass = LogPass()
    log_pass()
    kernels.expect(kernels.PATIENCE + 1)  # compiled from the first call on
    lines = ["| prompts | " + " | ".join(KINDS.values()) + " |", "|--:|" + "--:|" * len(KINDS)]
    table: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for prompts in sizes:
        for kind in KINDS:
            known = problem(kind, prompts)
            row = measure(lambda: allocate(known, SHARE * prompts), log_pass, options.seconds, prompts >= 10_000)  # noqa: B023
            table[kind].append(row)
        cells = [
            _time(seconds) + (f" ({ratio:.1f} log passes)" if prompts >= 250_000 else "")
            for seconds, ratio in (table[kind][-1] for kind in KINDS)
        ]
        lines.append(f"| {prompts:,} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    exponents = {kind: growth(sizes, [row[0] for row in table[kind]]) for kind in KINDS}
    lines.append("| growth | " + " | ".join(f"prompts^{exponents[kind]:.2f}" for kind in KINDS) + " |")

    lines += ["", "The same 100,000 prompts with other budgets:", ""]
    lines += ["| rollouts a prompt | " + " | ".join(KINDS.values()) + " |", "|--:|" + "--:|" * len(KINDS)]
    for share in (3, 8, 20, 60, 120):
        cells = []
        for kind in KINDS:
            known = problem(kind, 100_000)
            cells.append(_time(measure(lambda: allocate(known, share * 100_000), log_pass, options.seconds, False)[0]))  # noqa: B023
        lines.append(f"| {share} | " + " | ".join(cells) + " |")

    few = first_call(SHARE)[1]
    cold, warm = first_call(2 * kernels.PATIENCE // 256)  # those of min_generations do not count
    lines += [
        "",
        f"Import and first call in a new process, 256 prompts: {few:.2f} s for {SHARE} rollouts each, which is plain Python. "
        f"For so many that it is compiled: {cold:.1f} s with an empty cache, {warm:.1f} s afterwards.",
    ]
    peaks = [f"{memory(kind, 4_000_000):.0f} ({name})" for kind, name in KINDS.items()]
    lines += [f"Memory beside the input, counts included, in bytes a prompt: {', '.join(peaks)}."]
    unit = np.median([log_pass() for _ in range(9)])
    lines += [
        f"One log pass: {_time(float(unit))}. Python {platform.python_version()}, numpy {np.__version__}, "
        f"{platform.machine()}."
    ]
    print("\n".join(lines))
    if options.published:
        print("\n".join(against_published(options.published, log_pass)))

    if options.write:
        figure(sizes, table, DOCS / "figures" / "allocator_speed.png")
        page = DOCS / "allocator.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
