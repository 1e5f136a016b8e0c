import random
import zipfile

import numpy as np
import pytest

from trl_knapsack import SuccessRateTracker


def assert_same(a: SuccessRateTracker, b: SuccessRateTracker):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_evidence_equals_a_dictionary_of_histories():
    rng = random.Random(0)
    tracker = SuccessRateTracker(prior=(0.5, 1.5), decay=0.85)
    history = {}  # key -> visits of (successes, trials, rollouts, tokens)
    for _ in range(200):
        keys = [f"prompt {rng.randint(0, 30)}" for _ in range(rng.randint(1, 8))]
        trials = [rng.choice([0, 0, 2, 5, 9]) for _ in keys]
        successes = [rng.randint(0, n) for n in trials]
        rollouts = [n + rng.randint(0, 2) for n in trials]
        tokens = [rng.randint(0, 50) * n for n in rollouts]
        tracker.observe(keys, successes, trials, rollouts=rollouts, tokens=tokens)

        visit = {}  # two rows of one key are one visit
        for key, *numbers in zip(keys, successes, trials, rollouts, tokens, strict=True):
            visit[key] = [a + b for a, b in zip(visit.get(key, [0] * 4), numbers, strict=True)]
        for key, numbers in visit.items():
            history.setdefault(key, []).append(numbers)

    asked = sorted(history) + ["never seen"]
    evidence = tracker.evidence(asked)
    for i, key in enumerate(asked):
        won = lost = all_tokens = all_rollouts = 0.0
        last, visits = float("nan"), 0
        for s, n, r, t in history.get(key, []):
            all_tokens, all_rollouts = 0.85 * all_tokens + t, 0.85 * all_rollouts + r
            if n > 0:
                won, lost, last, visits = 0.85 * won + s, 0.85 * lost + n - s, s / n, visits + 1
        assert evidence.alpha[i] == pytest.approx(0.5 + won)
        assert evidence.beta[i] == pytest.approx(1.5 + lost)
        assert evidence.last_rate[i] == pytest.approx(last, nan_ok=True)
        assert evidence.visits[i] == visits
        mean_length = all_tokens / all_rollouts if all_rollouts else float("nan")
        assert evidence.mean_length[i] == pytest.approx(mean_length, nan_ok=True)
    assert len(tracker) == len(history)


def test_unseen_is_not_failed_and_unscored_is_not_seen():
    tracker = SuccessRateTracker()
    tracker.observe(["failed", "no reward"], successes=[0, 0], trials=[8, 0], rollouts=[8, 8], tokens=[80, 40])
    evidence = tracker.evidence(["failed", "no reward", "unseen"])
    assert evidence.visits.tolist() == [1, 0, 0]
    assert evidence.beta.tolist() == [9.0, 1.0, 1.0]
    assert np.isnan(evidence.last_rate).tolist() == [False, True, True]
    assert evidence.mean_length.tolist()[:2] == [10.0, 5.0]
    assert len(tracker) == 2  # asking about a prompt does not make it known


def test_state_comes_back_and_goes_on_equally(tmp_path):
    rng = np.random.default_rng(0)
    tracker = SuccessRateTracker()

    def visit(trackers, step):
        keys = [f"π {i}" for i in rng.integers(0, 50, size=16)]
        trials = rng.integers(0, 9, size=16)
        successes = rng.integers(0, trials + 1)
        for each in trackers:
            each.observe(keys, successes, trials, tokens=trials * step)

    for step in range(20):
        visit([tracker], step)
    tracker.save(tmp_path / "state.npz")
    restored = SuccessRateTracker()
    restored.load(tmp_path / "state.npz")
    assert_same(tracker, restored)
    for step in range(20):
        visit([tracker, restored], step)
    assert_same(tracker, restored)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.npz"]


def test_empty_state_comes_back(tmp_path):
    SuccessRateTracker().save(tmp_path / "state.npz")
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    tracker.load(tmp_path / "state.npz")
    assert len(tracker) == 0


def test_state_is_at_most_64_bytes_a_prompt(tmp_path):
    tracker = SuccessRateTracker()
    keys = [f"{i:032x}" for i in range(10_000)]
    tracker.observe(keys, np.ones(10_000), np.full(10_000, 2), tokens=np.ones(10_000))
    tracker.save(tmp_path / "state.npz")
    assert (tmp_path / "state.npz").stat().st_size <= 10_000 * (64 + 32) + 4096


@pytest.mark.parametrize("damage", ["truncated", "text", "pickle", "foreign", "newer", "bare array"])
def test_a_state_that_is_not_ours_is_refused(tmp_path, damage):
    path = tmp_path / "state.npz"
    tracker = SuccessRateTracker()
    tracker.observe(["a", "b"], [1, 0], [2, 2])
    tracker.save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_text("{}")
    elif damage == "pickle":
        np.savez(path, format=np.array([{"a": 1}], dtype=object))
    elif damage == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif damage == "bare array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **{**arrays, "version": np.array(99)})
    fresh = SuccessRateTracker()
    with pytest.raises(ValueError, match=str(path)):
        fresh.load(path)
    assert len(fresh) == 0


def test_a_write_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    tracker.save(path)
    tracker.observe(["b"], [1], [2])

    def disk_full(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", disk_full)
    with pytest.raises(OSError):
        tracker.save(path)
    monkeypatch.undo()
    restored = SuccessRateTracker()
    restored.load(path)
    assert restored.keys == ("a",)


def test_strict_state_dict():
    tracker = SuccessRateTracker()
    tracker.observe(["a", "b"], [1, 0], [2, 2])
    state = tracker.state_dict()
    with pytest.raises(ValueError, match="missing fields .'visits'"):
        tracker.load_state_dict({k: v for k, v in state.items() if k != "visits"})
    with pytest.raises(ValueError, match="unknown fields .'extra'"):
        tracker.load_state_dict({**state, "extra": 1})
    with pytest.raises(ValueError, match="visits"):
        tracker.load_state_dict({**state, "visits": np.zeros(3)})
    with pytest.raises(ValueError, match="repeats"):
        tracker.load_state_dict({**state, "keys": ("a", "a")})
    assert tracker.keys == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [2]), "trials has shape"),
        (([3, 0], [2, 2]), "must not exceed"),
        (([float("nan"), 0], [2, 2]), "successes must be finite"),
        (([-1, 0], [2, 2]), "not negative"),
    ],
)
def test_bad_observations_change_nothing(arguments, message):
    tracker = SuccessRateTracker()
    with pytest.raises(ValueError, match=message):
        tracker.observe(["a", "b"], *arguments)
    assert len(tracker) == 0


@pytest.mark.parametrize("prior", [(0, 1), (1,), (float("nan"), 1), (0.5, -1)])
def test_bad_prior(prior):
    with pytest.raises(ValueError, match="success_prior"):
        SuccessRateTracker(prior=prior)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="success_decay"):
        SuccessRateTracker(decay=decay)


def test_keys_are_text():
    tracker = SuccessRateTracker()
    for keys in ([7, 8], ["7", None]):
        with pytest.raises(
            ValueError, match=r"Key (7 is a int|None is a NoneType), but keys are text; give str\(key\)"
        ):
            tracker.observe(keys, [1, 0], [2, 2])
    assert len(tracker) == 0
