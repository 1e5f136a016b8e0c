"""Figures hold what the history says: their points, bars and cells are compared with counts in plain Python."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import tiny
from histories import random_visits, record_by_hand, write
from runs import knapsack, options, train
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, RolloutHistory
from trl_knapsack.errors import install_command
from trl_knapsack.reporting.plots import PLOTS, plot_prompts, to_image
from trl_knapsack.tracking import HISTORY_FILE
from trl_knapsack.tracking.history import HistoryWriter


@pytest.fixture
def visits():
    return list(random_visits())


@pytest.fixture
def history(tmp_path, visits):
    return write(tmp_path, visits)


def test_counts_show_every_known_group_where_it_was_believed(history, visits):
    axes, bar = PLOTS["counts"](history).axes
    points = axes.collections[0]
    expected, seen = [], defaultdict(list)
    for step, batch in enumerate(visits, 1):
        for key, (_, trials) in batch.items():
            if seen[key]:
                won, tried = (sum(x) for x in zip(*seen[key], strict=True))
                expected.append(((0.5 + won) / (1 + tried), trials, step))
        for key, visit in batch.items():
            seen[key].append(visit)
    x, y = np.asarray(points.get_offsets()).T
    assert len(x) == len(expected) > 100
    assert x == pytest.approx([rate for rate, _, _ in expected], abs=1e-5)
    assert np.round(y) == pytest.approx([count for _, count, _ in expected])
    assert points.get_array().tolist() == [step for _, _, step in expected]
    assert bar.get_ylabel() == "step"


def test_budgets_count_every_group(history, visits):
    (axes,) = PLOTS["budgets"](history).axes
    bars = Counter()
    for bar in axes.patches:
        bars[round(bar.get_x() + bar.get_width() / 2)] += round(bar.get_height())
    assert +bars == Counter(trials for batch in visits for _, trials in batch.values())
    assert axes.get_yscale() == "log"


def test_a_long_tail_fits_into_64_bars(tmp_path):
    history = write(tmp_path, [{"a": (1, 2), "b": (500, 1000)}, {"a": (1, 2), "b": (1, 999)}])
    (axes,) = PLOTS["budgets"](history).axes
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert len(axes.patches) <= 2 * 65


def test_effective_gradient_ratio_with_its_running_mean(history, visits):
    (axes,) = PLOTS["effective_gradient_ratio"](history).axes
    mixed = [[0 < won < tried for won, tried in batch.values()] for batch in visits]
    tried = [[tried for _, tried in batch.values()] for batch in visits]
    prompts = [sum(m) / len(m) for m in mixed]
    ratio = [sum(t for t, m in zip(*row, strict=True) if m) / sum(row[0]) for row in zip(tried, mixed, strict=True)]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    raw = [line.get_ydata() for line in axes.lines if line.get_alpha() == 0.3]
    assert raw[0] == pytest.approx(prompts)
    assert raw[1] == pytest.approx(ratio)
    assert lines["effective gradient ratio"] == pytest.approx(ratio)  # of 30 batches, means of one


def test_the_running_mean_looks_back(tmp_path):
    history = write(tmp_path, [{"a": (i % 2, 2)} for i in range(60)])  # mixed every second time
    (axes,) = PLOTS["effective_gradient_ratio"](history).axes
    (smooth,) = (line.get_ydata() for line in axes.lines if line.get_label() == "effective gradient ratio")
    assert smooth[:5] == pytest.approx([0, 1 / 2, 1 / 3, 2 / 3, 1 / 3])  # of three batches


def test_transitions_by_hand(tmp_path):
    history = write(
        tmp_path,
        [
            {"hopeless": (0, 4), "learnt": (0, 4), "forgotten": (4, 4), "once": (0, 4), "seldom": (1, 5)},
            {"learnt": (2, 4), "forgotten": (1, 4), "seldom": (4, 5)},
            {"hopeless": (0, 9), "learnt": (4, 4), "forgotten": (1, 9), "seldom": (4, 5)},
        ],
    )
    (axes,) = PLOTS["transitions"](history).axes
    cells = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert {place: text for place, text in cells.items() if text != "0"} == {
        (0, 0): "1\n50%",  # hopeless
        (0, 4): "1\n50%",  # learnt
        (4, 1): "1\n100%",  # forgotten
        (1, 3): "1\n100%",  # seldom: 0.2 is hard, 0.8 is easy
    }
    assert "4 prompts" in axes.get_title(loc="left")


def test_single_prompts(history, visits):
    figure = plot_prompts(history, keys=["p3", "p7"])
    for key, axes, rate in zip(["p3", "p7"], figure.axes[:2], figure.axes[-2:], strict=True):
        mine = [(step, *batch[key]) for step, batch in enumerate(visits, 1) if key in batch]
        assert axes.get_title(loc="left") == key
        assert rate.lines[0].get_xdata().tolist() == [step for step, _, _ in mine]
        assert rate.lines[0].get_ydata() == pytest.approx([won / tried for _, won, tried in mine])
        assert [bar.get_height() for bar in axes.patches] == [tried for _, _, tried in mine]
    with pytest.raises(ValueError, match="No prompt of this run has the key 'q'; its keys begin"):
        plot_prompts(history, keys=["q"])
    with pytest.raises(ValueError, match="31 prompts do not fit"):
        plot_prompts(history, keys=["p1"] * 31)


def test_every_plot_draws_every_history(tmp_path):
    """One batch, nothing scored, keys that matplotlib would read as formulas, a file format for each."""
    scored = record_by_hand()
    scored = replace(scored, evidence=replace(scored.evidence, keys=("$x", "a\nb", "$\\frac{$", "", "e" * 500)))
    unscored = replace(
        scored,
        successes=np.zeros(5),
        trials=np.zeros(5),
        mixed=np.zeros(5, bool),
        mean_reward=np.full(5, np.nan),
    )
    for name, records in {"unscored": [unscored], "scored": [scored] * 40}.items():
        for step, record in enumerate(records, 1):
            HistoryWriter(tmp_path / name / HISTORY_FILE).append(record, step, 0.0, "uniform")
        history = RolloutHistory.load(tmp_path / name)
        for plot, draw in PLOTS.items():
            image = to_image(draw(history), dpi=40)
            assert image.shape[2] == 3 and image.std() > 10, plot
    for suffix in ("png", "svg"):
        PLOTS["prompts"](history).savefig(tmp_path / f"plot.{suffix}")
        assert (tmp_path / f"plot.{suffix}").stat().st_size > 5000
    (tmp_path / HISTORY_FILE).touch()
    with pytest.raises(ValueError, match="no generation batch yet"):
        PLOTS["counts"](RolloutHistory.load(tmp_path))


def test_runs_without_differences_say_so(tmp_path):
    """Equal counts and one visit of each prompt: no bar struck through by lines, no panel left empty."""
    history = write(tmp_path, [{"a": (1, 8), "b": (2, 8)}, {"c": (3, 8), "d": (0, 8)}])
    texts = {name: [text.get_text() for text in PLOTS[name](history).axes[0].texts] for name in PLOTS}
    assert texts["budgets"] == ["All counts were equal: 8 generations of each prompt"]
    assert "All counts were equal: 8 generations of each prompt" in texts["counts"]
    assert texts["transitions"] == ["No prompt has had two visits yet"]
    assert not PLOTS["budgets"](history).axes[0].lines


def test_titles_of_single_prompts_do_not_collide(tmp_path):
    """With the hashes of content for keys: each title is no wider than its panel."""
    keys = [f"{i:x}" * 32 for i in range(9)]
    history = write(tmp_path, [dict.fromkeys(keys, (0, 20)), dict.fromkeys(keys, (0, 20))])
    figure = PLOTS["prompts"](history)
    to_image(figure)  # lays it out
    for axes in figure.axes[:9]:
        title = axes._left_title
        if title.get_text():
            assert title.get_window_extent().width <= axes.get_window_extent().width, title.get_text()


def test_calibration_by_hand(tmp_path):
    """Every group weighs the same, whatever its rollouts; bars are one standard error of the mean over groups."""
    names = [f"p{i}" for i in range(8)]
    first = dict.fromkeys(names, (3, 4)) | {"unscored": (0, 0)}
    second = {name: (won, 8) for name, won in zip(names, (0, 1, 2, 3, 4, 5, 6, 7), strict=True)} | {"rare": (0, 4)}
    third = dict.fromkeys(names[:5], (80, 80))
    with np.errstate(invalid="ignore"):
        history = write(tmp_path, [first, second, third])
    axes = PLOTS["calibration"](history).axes[0]
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        found[container.get_label()] = [*zip(*line.get_data(), strict=True)], bars.get_segments()
    assert found.keys() == {"never (9 groups)", "once (8 groups)"}  # those of the third batch are in five bins
    rates = [won / 8 for won in range(8)]
    (((x, y),), (bar,)) = found["once (8 groups)"]
    assert (x, y) == pytest.approx((3.5 / 5, sum(rates) / 8), abs=0.005)  # a prior of 0.5 and 0.5
    deviation = (sum((rate - y) ** 2 for rate in rates) / 7) ** 0.5
    assert [end for _, end in bar] == pytest.approx([y - deviation / 8**0.5, y + deviation / 8**0.5])
    (((x, y),), _) = found["never (9 groups)"]
    assert (x, y) == pytest.approx((0.5, (8 * 0.75 + 0) / 9))


def test_calibration_says_that_there_is_too_little(tmp_path):
    texts = [text.get_text() for text in PLOTS["calibration"](write(tmp_path, [{"a": (1, 2)}])).axes[0].texts]
    assert texts == ["No tenth of the believed rates has 5 scored groups yet"]


@pytest.mark.parametrize("module", ["tracking.history", "reporting.summary", "reporting.plots", "reporting.report"])
def test_plots_load_neither_torch_nor_matplotlib_before_they_draw(module):
    code = (
        f"import sys, trl_knapsack.{module}; "
        "print([m for m in ('torch', 'trl', 'transformers', 'datasets', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------- shown in trackers


def test_plots_are_images_in_tensorboard(model, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    knapsack(model, tmp_path, prompt_id_column="name", max_steps=3, plot_steps=2, report_to=["tensorboard"])
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {f"knapsack/plots/{name}" for name in PLOTS}
    for tag in events.Tags()["images"]:
        shown = events.Images(tag)
        assert [image.step for image in shown] == [2, 3]
        assert all(image.encoded_image_string.startswith(b"\x89PNG") and image.width > 500 for image in shown)


def trained(model, args, callbacks):
    trainer = KnapsackGRPOTrainer(
        model=model, reward_funcs=tiny.digit_reward, args=args, train_dataset=tiny.prompts(), callbacks=callbacks
    )
    trainer.train()
    return trainer


class Broken(TensorBoardCallback):
    def __init__(self):
        pass

    def _give_nothing(self, *args, **kwargs):
        pass

    on_train_begin = on_log = on_train_end = _give_nothing

    class tb_writer:
        def add_image(self, *args, **kwargs):
            raise RuntimeError("no images here")

    tb_writer = tb_writer()


def test_each_batch_is_read_once_however_often_plots_are_shown(model, tmp_path, monkeypatch):
    shown, lines, parse = [], [], json.loads

    class Shown(Broken):
        class tb_writer:
            def add_image(self, name, image, step, **kwargs):
                shown.append(step)

        tb_writer = tb_writer()

    def counted(text, *args, **kwargs):
        if b"solver_seconds" in bytes(text if isinstance(text, bytes) else text.encode()):
            lines.append(text)
        return parse(text, *args, **kwargs)

    monkeypatch.setattr(json, "loads", counted)
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=6, plot_steps=1))
    trained(model, args, [Shown()])
    assert sorted(set(shown)) == [1, 2, 3, 4, 5, 6]
    assert len(lines) == len(set(lines)) == 6  # and not 1 + 2 + ... + 6


def test_a_second_run_in_the_folder_shows_its_own_plots(model, tmp_path, monkeypatch):
    """With the callback of the first, and a file that is longer than the first's at its first showing."""
    seen = []
    monkeypatch.setattr("trl_knapsack.training.callbacks.PLOTS", {"all": lambda h: seen.append(h.allocation.tolist())})
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=2, plot_steps=2))
    trainer = trained(model, args, [Broken()])
    trainer.success_rate_callback.allocation = "one with a longer name"
    trainer.train()
    assert seen == [["posterior"] * 2, ["one with a longer name"] * 2]


def test_a_tracker_that_takes_no_images_does_not_stop_the_run(model, tmp_path, caplog):
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=2, plot_steps=2))
    trainer = trained(model, args, [Broken()])
    assert trainer.state.global_step == 2
    assert "Broken did not take the plots of step 2: no images here" in caplog.text


def test_a_run_whose_history_is_gone_goes_on(model, tmp_path, caplog):
    class InTheWay(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            (tmp_path / HISTORY_FILE).mkdir(exist_ok=True)

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=2, plot_steps=1))
    trainer = trained(model, args, [Broken(), InTheWay()])
    assert trainer.state.global_step == 2
    assert "No plots at step 2" in caplog.text


def test_plots_without_a_place_to_show_them_are_warned_of(model, tmp_path, caplog):
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1, plot_steps=5))
    train(KnapsackGRPOTrainer, model, args)
    assert "plot_steps (5) shows plots in tensorboard, wandb and trackio, but report_to is []" in caplog.text


def test_plot_steps_that_can_not_work_are_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="plot_steps \\(-1\\) must not be negative"):
        KnapsackGRPOConfig(**options(tmp_path, plot_steps=-1))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    args = KnapsackGRPOConfig(**options(tmp_path, plot_steps=1))
    sentence = f"Plots need matplotlib, which is not installed; run `{install_command('plots')}`"
    with pytest.raises(ImportError, match=re.escape(sentence)):
        train(KnapsackGRPOTrainer, model, args)
