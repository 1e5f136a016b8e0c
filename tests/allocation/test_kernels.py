"""The kernels on their own; this file also runs with NUMBA_DISABLE_JIT=1."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trl_knapsack
from trl_knapsack.allocation import BetaBeliefs, MixedGroupValue, allocate, expected_values, kernels, selection
from trl_knapsack.allocation.values import resolve


KNOWN = {"rates": np.array([0.3, 0.0, 1.0, 0.7]), "beliefs": BetaBeliefs([2.5, 1, 1e-6, 1e12], [1.5, 1, 9, 1e12])}


@pytest.fixture
def plain():
    """A process that has allocated nothing yet."""
    kernels.Compiled.ready, kernels.Compiled.expected = False, 0
    yield
    kernels.expect(kernels.PATIENCE + 1)


def collect(gains, low, high, top, bottom, room=1000):
    counts, items, owners = np.empty(gains.k.size, np.int64), np.empty(room), np.empty(room, np.int64)
    result = kernels.collect(gains, np.array(low), np.array(high), top, bottom, counts, items, owners)
    return *result, counts, items, owners


@pytest.mark.parametrize("kind", KNOWN)
def test_gains_do_not_depend_on_bracket_or_bounds(kind):
    # Whatever is counted and whatever is stored, the chain of a prompt's gains is bitwise the same: ties depend on it.
    one = KNOWN[kind][:1] if kind == "rates" else BetaBeliefs(KNOWN[kind].alpha[:1], KNOWN[kind].beta[:1])
    gains = resolve(one, "knapsack", 60)
    above, found, _, below, counts, chain, _ = collect(gains, [2], [60], np.inf, selection.TINY)
    chain = chain[:found].tolist()
    assert (above, found, below, counts.tolist()) == (0, 58, 0.0, [2]) and all(np.diff(chain) < 0)
    for cut in range(1, len(chain)):
        above, found, _, below, counts, rest, _ = collect(gains, [2], [50], chain[cut - 1], selection.TINY)
        assert above == min(cut, 48) and counts[0] == 2 + above and rest[:found].tolist() == chain[cut:48]
        above, found, _, below, _, _, _ = collect(gains, [2], [60], np.inf, chain[cut - 1])
        assert (found, below) == (cut, chain[cut])
        above, found, _, _, _, rest, _ = collect(gains, [2 + cut], [60], np.inf, selection.TINY)
        assert rest[:found].tolist() == chain[cut:]


def test_collect_counts_what_it_has_no_room_for():
    gains = resolve(KNOWN["rates"], "knapsack", 60)
    *_, items, owners = collect(gains, [2], [20], np.inf, 1e-9)
    _, found, *_ = collect(gains, [2], [20], np.inf, 1e-9, room=3)
    assert found == 2 * 18
    assert owners[:found].tolist() == [0] * 18 + [3] * 18
    assert items[:found] == pytest.approx([naive.gain(p, n) for p in (0.3, 0.7) for n in range(2, 20)], rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40), st.integers(0, 5))
def test_take(items, last):
    gains, owners = (np.array([row[j] for row in items], dtype) for j, dtype in enumerate((float, int)))
    counts, caps = np.full(10, 3), np.full(10, 3)
    taken, value, below = kernels.take(gains, owners, float(last), counts, caps)
    assert counts.tolist() == [3 + sum(o == i and g > last for g, o in items) for i in range(10)]
    assert caps.tolist() == [3 + sum(o == i and g >= last for g, o in items) for i in range(10)]
    assert (taken, value) == (sum(g > last for g, _ in items), sum(g for g, _ in items if g > last))
    assert below == max((g for g, _ in items if g < last), default=0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.data())
def test_fill_level(prompts, data):
    counts = [row[0] for row in prompts]
    high = [sum(row) for row in prompts]
    room = data.draw(st.integers(0, sum(high) - sum(counts)))
    filled = np.array(counts)
    kernels.fill_level(filled, np.array(high), room)
    assert filled.tolist() == naive.greedy(lambda i, n: 0, counts, high, sum(counts) + room)


def test_fill_level_with_bounds_far_above_the_room():
    filled = np.array([5, 3, 3])
    kernels.fill_level(filled, np.array([2**31 - 1] * 3), 5)
    assert filled.tolist() == [6, 5, 5]


def test_knapsack_table():
    values = np.array([[0.0, 1.0, 1.5], [0.0, 0.2, 3.0]])
    best, choices = np.empty((4, 6)), np.zeros((2, 4, 6), np.int32)
    kernels.knapsack_table(values, np.array([0, 0]), np.array([2, 2]), np.array([1, 2]), best, choices)
    # three rollouts within 5 tokens: (1, 2) costs 1 + 4
    assert best[3, 5] == 4.0 and choices[1, 3, 5] == 2
    # within 4 tokens only (2, 1) fits, within 3 none
    assert best[3, 4] == 1.7 and best[3, 3] == -np.inf


@given(
    st.floats(1e-6, 1e12), st.floats(1e-6, 1e12), st.sampled_from([(1, 2), (0.5, 1), (0.5, 0.5), (0, 1.5), (32, 32)])
)
def test_first_gain_of_beliefs(a, b, powers):
    r, s = powers
    gains = resolve(BetaBeliefs([a], [b]), MixedGroupValue(r, s), 2)
    # By lgamma, which loses digits as its arguments grow: compared where they are moderate, bounded where they are not.
    assert 0 <= gains.k[0] < 1 and np.isfinite(gains.k[0])
    if max(a, b) < 1e4:
        numerator = math.lgamma(a + r + 1) - math.lgamma(a) + math.lgamma(b + s + 1) - math.lgamma(b)
        expected = math.exp(numerator - math.lgamma(a + b + r + s + 2) + math.lgamma(a + b))
        assert gains.k[0] == pytest.approx(expected, rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("value", ["knapsack", "root"])
def test_plain_and_compiled_give_the_same_bits(kind, value, plain):
    def run():
        found = (
            allocate(KNOWN[kind], 90, value=value),
            allocate(KNOWN[kind], 90, value=value, costs=[7, 9, 2, 4], cost_weight=1e-5),
        )
        dp = allocate(KNOWN[kind], 30, value=value, solver="dp", max_generations=20)
        return [(f.counts.tolist(), f.value, f.shadow_price) for f in (*found, dp)], expected_values(
            KNOWN[kind], [2, 9, 40, 5]
        ).tolist()

    before = run()
    assert not kernels.Compiled.ready
    kernels.expect(kernels.PATIENCE)
    assert kernels.Compiled.ready
    assert run() == before


@pytest.mark.compiled
def test_enough_work_turns_compilation_on(plain):
    rates = np.full(kernels.PATIENCE // 80, 0.5)
    for _ in range(9):
        allocate(rates, 8 * rates.size)
        assert not kernels.Compiled.ready
    for _ in range(3):
        allocate(rates, 8 * rates.size)
    assert kernels.Compiled.ready


def fresh_process(code, path, **environment):
    environment = {**os.environ, "PYTHONPATH": str(path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=path)


def test_few_prompts_do_not_load_numba():
    code = (
        "import sys; from trl_knapsack import allocate; allocate([0.1] * 256, 2048); sys.exit('numba' in sys.modules)"
    )
    assert fresh_process(code, Path(trl_knapsack.__file__).parents[1]).returncode == 0


@pytest.mark.compiled
def test_without_a_folder_for_the_cache_it_compiles_and_warns_once(tmp_path):
    # Root may write everywhere, so these are places where nobody can: a file where the folder would be, and /proc.
    here = Path(trl_knapsack.__file__).parent
    shutil.copytree(here, tmp_path / "trl_knapsack", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "trl_knapsack" / "allocation" / "__pycache__").write_text("")
    code = (
        "from trl_knapsack.allocation import allocate, kernels; kernels.expect(10**9)\n"
        "print(allocate([0.0, 0.1, 0.4, 0.9, 1.0], 40).counts.tolist(), allocate([0.0] * 3, 16).counts.tolist())"
    )
    nowhere = {"NUMBA_CACHE_DIR": "/proc/nope", "HOME": "/proc/nope", "XDG_CACHE_HOME": "/proc/nope"}
    run = fresh_process(code, tmp_path, **nowhere)
    assert run.stdout.strip() == "[2, 24, 9, 3, 2] [6, 5, 5]", run.stderr
    assert run.stderr.count("RuntimeWarning") == 1
    assert "can't be cached, because no folder for it can be written to" in run.stderr
