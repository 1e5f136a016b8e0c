import json
import os
import random
import re

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from trl_knapsack import SuccessRateTracker
from trl_knapsack.errors import InvalidInputError, MissingFileError
from trl_knapsack.tracking import find_state, state_file


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


def test_a_visit_in_parts_is_one_visit():
    """Observed in two parts, what is known is what one observation of both would tell, but for rounding."""
    rng = random.Random(1)
    parts, whole = SuccessRateTracker(decay=0.7), SuccessRateTracker(decay=0.7)
    keys = [f"prompt {i}" for i in range(12)]
    for _ in range(20):
        first, second = ([rng.randint(least, 9) for _ in keys] for least in (1, 0))
        won = [[rng.randint(0, n) for n in trials] for trials in (first, second)]
        tokens = [[rng.randint(1, 99) * n for n in trials] for trials in (first, second)]
        parts.observe(keys, won[0], first, tokens=tokens[0])
        parts.observe(keys, won[1], second, tokens=tokens[1], earlier=(won[0], first))
        both = [[a + b for a, b in zip(*pair, strict=True)] for pair in (won, (first, second), tokens)]
        whole.observe(keys, both[0], both[1], tokens=both[2])
    for name, values in parts.state_dict().items():
        if name == "keys":
            assert values == whole.keys
        elif name == "last_rate":  # of a second part without a reward it is the first's, which is the whole
            np.testing.assert_array_equal(values, whole.state_dict()[name])
        else:
            np.testing.assert_allclose(values, whole.state_dict()[name], rtol=1e-12)


def test_an_unscored_group_beside_one_that_goes_on_ages_nothing():
    tracker = SuccessRateTracker(decay=0.5)
    tracker.observe(["a"], [2], [4])
    tracker.observe(["a", "a"], [1, 0], [2, 0], earlier=([2, 0], [4, 0]))  # the prompt was drawn a second time
    evidence = tracker.evidence(["a"])
    assert (evidence.alpha[0], evidence.beta[0], evidence.visits[0]) == (1 + 3, 1 + 3, 1)
    assert evidence.last_rate[0] == 0.5


def test_evidence_is_of_the_prompts_that_were_asked_for():
    tracker = SuccessRateTracker()
    tracker.observe(["a", "b"], [1, 2], [3, 3])
    evidence = tracker.evidence(["b", "never seen", "a", "b"])
    assert evidence.keys == ("b", "never seen", "a", "b")
    assert evidence.alpha.tolist() == [3, 1, 2, 3]


def test_nothing_observed_is_nothing_learnt():
    tracker = SuccessRateTracker()
    tracker.observe([], [], [])
    assert len(tracker) == 0 and len(tracker.evidence([])) == 0
    tracker.observe(["a"], [1], [2])
    tracker.observe([], [], [], tokens=[])
    assert tracker.keys == ("a",)


@pytest.mark.parametrize("name", ["rollouts", "tokens"])
@pytest.mark.parametrize(("value", "message"), [([1.0], r"has shape \(1,\)"), ([1.0, -1.0], "must be finite and not")])
def test_a_bad_argument_is_named(name, value, message):
    with pytest.raises(InvalidInputError, match=f"^{name} {message}"):
        SuccessRateTracker().observe(["a", "b"], [1, 1], [2, 2], **{name: value})


@pytest.mark.parametrize("place", [0, 1])
def test_a_bad_earlier_visit_is_named(place):
    earlier = [[1.0, 1.0], [2.0, 2.0]]
    earlier[place] = [1.0]
    with pytest.raises(InvalidInputError, match=rf"^earlier\[{place}\] has shape \(1,\), but there are 2 keys"):
        SuccessRateTracker().observe(["a", "b"], [1, 1], [2, 2], earlier=tuple(earlier))


def test_state_has_the_types_of_its_file_however_it_came_to_be():
    tracker = SuccessRateTracker()
    for _ in range(2):
        types = {name: values.dtype for name, values in tracker.state_dict().items() if name != "keys"}
        assert types.pop("visits") == np.int64 and set(types.values()) == {np.dtype(np.float64)}
        tracker.observe(["a", "b", "c"], [1, 2, 0], [3, 3, 0])


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
    tracker.observe(["no reward yet"], [0], [0], rollouts=[3], tokens=[9])
    tracker.save(tmp_path / "state.safetensors")
    restored = SuccessRateTracker()
    restored.load(tmp_path / "state.safetensors")
    assert_same(tracker, restored)
    for step in range(20):
        visit([tracker, restored], step)
    assert_same(tracker, restored)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.safetensors"]


def test_empty_state_comes_back(tmp_path):
    SuccessRateTracker().save(tmp_path / "state.safetensors")
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    tracker.load(tmp_path / "state.safetensors")
    assert len(tracker) == 0


def test_state_is_at_most_64_bytes_a_prompt(tmp_path):
    tracker = SuccessRateTracker()
    keys = [f"{i:032x}" for i in range(10_000)]
    tracker.observe(keys, np.ones(10_000), np.full(10_000, 2), tokens=np.ones(10_000))
    tracker.save(tmp_path / "state.safetensors")
    assert (tmp_path / "state.safetensors").stat().st_size <= 10_000 * (64 + 32) + 4096


def saved(path, prompts=2) -> SuccessRateTracker:
    tracker = SuccessRateTracker()
    tracker.observe([f"π {i}" for i in range(prompts)], [1] * prompts, range(2, 2 + prompts), tokens=[7] * prompts)
    tracker.save(path)
    return tracker


def rewritten(path, about=(), digest=True, **tensors):
    """The file with other contents, and a digest that is right for them."""
    with safe_open(path, framework="np") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()} | tensors
        about = file.metadata() | dict(about)
    kept = {name: values for name, values in kept.items() if values is not None}
    if digest and set(state_file._TENSORS) <= set(kept):
        about["digest"] = state_file._digest(kept)
    safetensors.numpy.save_file(kept, path, about)


FAR = np.array([3.0, 1e308])
UNREADABLE = "is not a readable success-rate state"
DAMAGES = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        f"{UNREADABLE} .*; name another, or restore",
    ),
    "empty": (lambda path: path.write_bytes(b""), UNREADABLE),
    "text": (lambda path: path.write_text("{}"), UNREADABLE),
    "a long text": (
        lambda path: path.write_text("success " * 9000),
        f"{UNREADABLE} .it does not begin with the header",
    ),
    "old": (lambda path: np.savez(open(path, "wb"), a=np.zeros(3)), "is a .npz, the state of an earlier trl_knapsack"),
    "old, pickled": (
        lambda path: np.savez(open(path, "wb"), a=np.array([{}], object)),
        "is a .npz, the state of an ear",
    ),
    "bare array": (lambda path: np.save(open(path, "wb"), np.zeros(3)), UNREADABLE),
    "a model": (
        lambda path: safetensors.numpy.save_file({"w": FAR}, path),
        "was not written by trl_knapsack; point to a",
    ),
    "newer": (
        lambda path: rewritten(path, {"version": "99"}),
        "has state version 99, this trl_knapsack reads version 2",
    ),
    "no version": (lambda path: rewritten(path, {"version": "\x1b[31m"}), r"has state version .x1b.31m, this"),
    "altered": (lambda path: rewritten(path, digest=False, successes=FAR / 2), "does not match its digest"),
    "no tokens": (lambda path: rewritten(path, tokens=None), r"missing fields \['tokens'\] and unknown fields \[\]"),
    "a field more": (lambda path: rewritten(path, more=FAR), r"missing fields \[\] and unknown fields \['more'\]"),
    "of float32": (lambda path: rewritten(path, failures=FAR[:1].astype(np.float32)), "failures is of float32"),
    "a matrix": (lambda path: rewritten(path, failures=np.ones((2, 1))), r"failures is of float64\(2, 1\)"),
    "one row less": (lambda path: rewritten(path, failures=np.ones(1)), r"'failures' has shape \(1,\) for 2 keys"),
    "huge": (
        lambda path: rewritten(path, failures=FAR),
        "'failures' has values that are not finite, or negative, or above",
    ),
    "negative": (
        lambda path: rewritten(path, tokens=-np.ones(2)),
        "'tokens' has values that are not finite, or negative",
    ),
    "no number": (lambda path: rewritten(path, successes=FAR * np.nan), "'successes' has values that are not finite"),
    "visits": (
        lambda path: rewritten(path, visits=np.array([1, -1])),
        "'visits' has values that are not finite, or neg",
    ),
    "a rate of 55": (
        lambda path: rewritten(path, last_rate=np.array([0.5, 55])),
        "'last_rate' has values that are neither",
    ),
    "a rate of -inf": (
        lambda path: rewritten(path, last_rate=np.array([-np.inf, 0])),
        "'last_rate' has values that are",
    ),
    "lengths": (
        lambda path: rewritten(path, key_lengths=np.array([3, 2], np.int32)),
        "the lengths of its keys are not",
    ),
    "less than none": (
        lambda path: rewritten(path, key_lengths=np.array([-1, 7], np.int32)),
        "the lengths of its keys",
    ),
    "no text": (lambda path: rewritten(path, key_text=np.full(8, 255, np.uint8)), "codec can't decode"),
    "one key twice": (
        lambda path: rewritten(path, key_text=np.frombuffer(b"abcabc", np.uint8)),
        "repeats a prompt key",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_is_not_ours_is_refused(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    saved(path)
    spoil, message = DAMAGES[damage]
    spoil(path)
    fresh = SuccessRateTracker()
    with pytest.raises(InvalidInputError, match=f"^{re.escape(str(path))} .*{message}") as error:
        fresh.load(path)
    assert "remove" not in str(error.value)  # it may be someone else's
    assert str(error.value).count(".\n") == 0 and str(error.value).endswith(".")
    assert len(fresh) == 0


@pytest.mark.parametrize("rows", [10**12, 2**61, 2**64 - 1, 10**30, -1])
def test_a_file_that_promises_more_than_it_has_takes_no_memory(tmp_path, rows):
    path = tmp_path / "state.safetensors"
    saved(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name in ("successes", "visits"):
        start = header[name]["data_offsets"][0]
        header[name] |= {"shape": [rows], "data_offsets": [start, start + 8 * rows]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(InvalidInputError, match=f"^{re.escape(str(path))} {UNREADABLE}"):
        SuccessRateTracker().load(path)
    path.write_bytes((10**7).to_bytes(8, "little") + b" " * 10**7)
    with pytest.raises(InvalidInputError, match="it does not begin with the header of a state"):
        SuccessRateTracker().load(path)


def test_no_cut_and_no_flipped_bit_is_believed(tmp_path):
    """A file that is damaged anywhere is refused, by one class of error that names it, or is the same state."""
    path = tmp_path / "state.safetensors"
    tracker = saved(path, prompts=40)
    content, rng = path.read_bytes(), random.Random(0)
    damaged = [content[:length] for length in [*range(16), *rng.sample(range(len(content)), 150)]]
    header = 8 + int.from_bytes(content[:8], "little")
    for places in (range(8 * header), range(8 * header, 8 * len(content))):
        for bit in rng.sample(places, 400):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            damaged.append(bytes(flipped))
    refused = 0
    for spoilt in damaged:
        path.write_bytes(spoilt)
        fresh = SuccessRateTracker()
        try:
            fresh.load(path)
        except InvalidInputError as error:
            assert str(error).startswith(str(path))
            refused += 1
        else:
            assert_same(tracker, fresh)
    assert refused >= len(damaged) - 5


def test_what_is_loaded_shares_nothing_with_the_file(tmp_path):
    path = tmp_path / "state.safetensors"
    tracker, fresh = saved(path), SuccessRateTracker()
    fresh.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(tracker, fresh)
    fresh.observe(["π 0"], [1], [1])  # is writable


def test_keys_of_every_kind_come_back(tmp_path):
    keys = ["", "a", "π", "你好", "🦜", "half of one \ud83d", "\udc00 other half", "nul\0", "line\n"]
    tracker, fresh = SuccessRateTracker(), SuccessRateTracker()
    tracker.observe(keys, range(9), [9] * 9)
    tracker.save(tmp_path / "state.safetensors")
    fresh.load(tmp_path / "state.safetensors")
    assert fresh.keys == tuple(keys)
    assert_same(tracker, fresh)


def test_a_file_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "\x1b[31m.safetensors"
    with pytest.raises(
        MissingFileError, match=r"x1b.31m.safetensors does not exist, or is no file; name a knapsack_stat"
    ):
        SuccessRateTracker().load(path)
    with pytest.raises(MissingFileError, match="is no file"):
        SuccessRateTracker().load(tmp_path)
    saved(path)
    for kind in (MemoryError, PermissionError, RecursionError, TypeError, KeyError, OverflowError):

        def fails(*_, kind=kind, **__):
            raise kind

        monkeypatch.setattr(state_file, "safe_open", fails)
        with pytest.raises(InvalidInputError, match=rf"x1b.31m.safetensors {UNREADABLE} .{kind.__name__}."):
            SuccessRateTracker().load(path)


def test_a_write_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    tracker.save(path)
    tracker.observe(["b"], [1], [2])

    def disk_full(descriptor):
        raise OSError("No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: disk_full(None))
            with pytest.raises(OSError):
                tracker.save(path)
        assert os.listdir(tmp_path) == ["state.safetensors"]  # nothing half done is left on a full disk
        restored = SuccessRateTracker()
        restored.load(path)
        assert restored.keys == ("a",)


# ------------------------------------------------------------------------------------------------- where it is


def test_one_function_finds_the_state(tmp_path):
    run = tmp_path / "run"
    for folder in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-²"):
        (run / folder).mkdir(parents=True)
    with pytest.raises(
        MissingFileError, match="run holds no knapsack_state.safetensors, so there are no success rates"
    ):
        find_state(run)
    (run / "checkpoint-best" / "knapsack_state.safetensors").touch()
    (run / "checkpoint-9" / "knapsack_state.safetensors").touch()
    assert find_state(run) == run / "checkpoint-9" / "knapsack_state.safetensors"
    (run / "checkpoint-10" / "knapsack_state.safetensors").touch()
    assert find_state(str(run)) == run / "checkpoint-10" / "knapsack_state.safetensors"
    assert find_state(run / "checkpoint-9") == run / "checkpoint-9" / "knapsack_state.safetensors"
    (run / "knapsack_state.safetensors").touch()
    assert find_state(run) == run / "knapsack_state.safetensors"
    assert find_state(run / "knapsack_state.safetensors") == run / "knapsack_state.safetensors"


def test_a_state_of_old_is_found_so_that_its_reader_can_say_so(tmp_path):
    np.savez(tmp_path / "knapsack_state.npz", version=np.array(1))
    with pytest.raises(InvalidInputError, match="knapsack_state.npz is a .npz, the state of an earlier"):
        SuccessRateTracker().load(find_state(tmp_path))
    (tmp_path / "checkpoint-1").mkdir()
    saved(tmp_path / "checkpoint-1" / "knapsack_state.safetensors")
    assert find_state(tmp_path).parent.name == "checkpoint-1"


def test_a_misspelt_path_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    for given in ("output/run", "outputs/rnu", str(tmp_path / "outptus" / "run")):
        meant = str(tmp_path / "outputs" / "run") if os.path.isabs(given) else "outputs/run"
        with pytest.raises(MissingFileError, match=f"does not exist, so .* continue with; did you mean '{meant}'\\?$"):
            find_state(given)
    for given in ("elsewhere", "outputs/elsewhere", "elsewhere/run"):
        with pytest.raises(
            MissingFileError, match="does not exist, so .*; name a folder that KnapsackGRPOTrainer wrote"
        ):
            find_state(given)


# ------------------------------------------------------------------------------------------------------ showing it


def test_it_shows_itself_on_a_line_and_in_a_notebook():
    tracker = SuccessRateTracker()
    assert repr(tracker) == "SuccessRateTracker(0 prompts, nothing observed, prior (1, 1), decay 0.85)"
    tracker.observe([f"{i}" for i in range(2000)], np.full(2000, 2), np.full(2000, 2))
    tracker.observe(["unscored"], [0], [0])
    assert repr(tracker) == "SuccessRateTracker(2,001 prompts, mean success rate 0.75, prior (1, 1), decay 0.85)"
    shown = tracker._repr_html_()
    assert (
        "<tr><th>extremely easy</th><td>2,000</td></tr>" in shown
        and "<tr><th>never scored</th><td>1</td></tr>" in shown
    )
    assert SuccessRateTracker()._repr_html_()


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
    with pytest.raises(ValueError, match="must be text"):
        tracker.load_state_dict({**state, "keys": (1, "a")})
    for wrong in (["many", 1], [10**30, 1], {"a": 1}):
        with pytest.raises(ValueError, match="'visits' is no array of numbers"):
            tracker.load_state_dict({**state, "visits": wrong})
    assert tracker.keys == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [2]), "trials has shape"),
        (([3, 0], [2, 2]), "must not exceed"),
        (([float("nan"), 0], [2, 2]), "successes must be finite"),
        (([-1, 0], [2, 2]), "not negative"),
        (([1, 0], [1e12, 2]), "at most 1e.11"),  # could be saved, and not loaded
    ],
)
def test_bad_observations_change_nothing(arguments, message):
    tracker = SuccessRateTracker()
    with pytest.raises(ValueError, match=message):
        tracker.observe(["a", "b"], *arguments)
    assert len(tracker) == 0


@pytest.mark.parametrize(
    "prior", [(0, 1), (1, 0), (1,), (1, 1, 1), (float("nan"), 1), (1, float("inf")), (0.5, -1), 1.0, None, ("a", 1)]
)
def test_bad_prior(prior):
    with pytest.raises(
        ValueError, match=re.escape(f"success_prior {prior!r} must be two positive numbers, for example (")
    ):
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
    with pytest.raises(ValueError, match="Key .* is a bytes") as error:
        tracker.observe([b"k" * 10_000], [1], [2])
    assert len(str(error.value)) < 200
    assert len(tracker) == 0
