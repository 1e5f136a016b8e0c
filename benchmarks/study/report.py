"""
Write the tables and figures of docs/results.md from the study's results.

    python benchmarks/study/report.py            # writes them
    python benchmarks/study/report.py --check    # fails if the tables in the page are not those of the results

Between the markers `<!-- table: NAME -->` and `<!-- end -->` the page belongs to this program, the rest to its authors.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable

import numpy as np
from analysis import RESAMPLES, Cell, about, load_cells, pooled_over, stale, tuning_table
from contenders import CONTENDERS
from study import HERE, PROFILES, RESULTS, TUNING_TASK, VARIANTS, load_results

from trl_knapsack.evaluation import bootstrap_interval


PAGE = HERE.parent.parent / "docs" / "results.md"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SPENDERS = (
    "uniform",
    "posterior",
    "look-64",
    "filter",
    "dynamic",
    "paper",
    "oracle",
)  # whose use of rollouts is shown
SOONER = ("posterior", "look", "look-64", "column", "column-look", "warm", "oracle")
SETTINGS = {"once": "one epoch", "two": "2 prompts a batch", "four": "4 prompts a batch"}  # by profile
DEFAULT = "look-64"
PRIORS = ("size", "solve rate", "hidden state", "noise")  # kinds of features
Cells = dict[tuple[str, str], Cell]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n"


def signed(interval) -> str:
    star = "**" if interval.low > 0 or interval.high < 0 else ""
    return f"{star}{interval.estimate:+.3f}{star} [{interval.low:+.3f}, {interval.high:+.3f}]"


def on_tuning_task(cells: Cells, label: Callable, entry: Callable) -> str:
    """Rows for every contender that ran on the tuning task, a column for each regime."""
    those = {regime: cell for (task, regime), cell in cells.items() if task == TUNING_TASK}
    rows = [
        [label(name), *(entry(cell, name) if name in cell.runs else "" for cell in those.values())]
        for name in CONTENDERS
        if any(name in cell.runs for cell in those.values())
    ]
    return table([TUNING_TASK, *those], rows)


def accuracy(cells: Cells) -> str:
    """Every contender on the tuning task: held-out accuracy less uniform's, in each regime."""

    def entry(cell: Cell, name: str) -> str:
        return str(cell.accuracy(name)) if name == "uniform" else signed(cell.over(name))

    def label(name: str) -> str:
        return "uniform: held-out accuracy" if name == "uniform" else f"`{name}`: {about(name)}"

    return on_tuning_task(cells, label, entry)


def all_tasks(cells: Cells) -> str:
    """The contenders that run on all tasks: held-out accuracy less uniform's, cell by cell and pooled by regime."""
    contenders = [name for name in CONTENDERS if all(name in cell.runs for cell in cells.values())]
    rows = []
    for (task, regime), cell in cells.items():
        others = [signed(cell.over(name)) for name in contenders if name != "uniform"]
        rows.append([f"{task}, {regime}", str(cell.accuracy("uniform")), *others])
    for regime in dict.fromkeys(regime for _, regime in cells):
        some = [cell for (_, of), cell in cells.items() if of == regime]
        if len(some) > 1:
            pooled = [signed(pooled_over(some, name)) for name in contenders if name != "uniform"]
            rows.append([f"all tasks, {regime}", "", *pooled])
    return table(["", "uniform", *(f"`{name}`" for name in contenders if name != "uniform")], rows)


def cost(cells: Cells) -> str:
    """Rollouts to reach uniform's final accuracy, as a share of uniform's whole."""
    contenders = [name for name in CONTENDERS if all(name in cell.runs for cell in cells.values())]
    rows = [
        [f"{task}, {regime}", *(share(*cell.cost_to_reach_uniform(name)) for name in contenders)]
        for (task, regime), cell in cells.items()
    ]
    return table(["", *(f"`{name}`" for name in contenders)], rows)


def cost_arithmetic(cells: Cells) -> str:
    """The same for every contender on the tuning task."""
    return on_tuning_task(cells, lambda name: f"`{name}`", lambda cell, name: share(*cell.cost_to_reach_uniform(name)))


def cost_of_default(cells: Cells) -> str:
    """The default's cost to reach uniform's final accuracy, in rollouts and in tokens."""
    rows = [
        [f"{task}, {regime}", *(share(*cell.cost_to_reach_uniform(DEFAULT, cost)) for cost in ("rollouts", "tokens"))]
        for (task, regime), cell in cells.items()
    ]
    return table([f"`{DEFAULT}`", "rollouts", "tokens"], rows)


def share(estimate: float, low: float, high: float) -> str:
    def text(value):
        return "not reached" if value == float("inf") else f"{value:.2f}"

    return f"{text(estimate)} [{text(low)}, {text(high)}]"


def points(gain, share_of_rollouts: float | None = None) -> str:
    """A difference in per cent points, and the share of rollouts to uniform's final accuracy."""
    star = "**" if gain.low > 0 or gain.high < 0 else ""
    text = f"{star}{100 * gain.estimate:+.2f}{star} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    if share_of_rollouts is not None:
        text += ", not reached" if share_of_rollouts == float("inf") else f", {share_of_rollouts:.2f}"
    return text


def over_the_run(cells: Cells, label: str, contenders: list[str], against: str = "uniform") -> list[list[str]]:
    """Rows of accuracy over the run less another contender's, a column for each; with the mean over the tasks."""
    rows = []
    for (task, _), cell in cells.items():
        row = [f"{label}{task}"]
        for name in contenders:
            if name not in cell.runs or against not in cell.runs:
                row.append("")
                continue
            reached = cell.cost_to_reach_uniform(name)[0]
            seeds = len(cell.differences(name, "means", against))
            row.append(f"{points(cell.over(name, 'means', against), reached)} ({seeds})")
        rows.append(row)
    if len(cells) > 1:
        row = [f"{label}mean of tasks"]
        for name in contenders:
            there = all(name in cell.runs and against in cell.runs for cell in cells.values())
            row.append(f"{points(pooled_over(list(cells.values()), name, 'means', against))} (all)" if there else "")
        rows.append(row)
    return rows


def sooner(cells: Cells) -> str:
    """
    What is known sooner: accuracy over the run less uniform's, in points, and the rollouts to uniform's final accuracy.
    """
    settings = {"six epochs": {key: cell for key, cell in cells.items() if key[1] == "saturated"}}
    for profile, label in SETTINGS.items():
        settings[label] = load_cells(profile)[0]
    contenders = [
        name for name in SOONER if any(name in cell.runs for some in settings.values() for cell in some.values())
    ]
    rows = [row for label, some in settings.items() for row in over_the_run(some, f"{label}, ", contenders)]
    return table(["", *(f"`{name}`" for name in contenders)], rows)


def variants(cells: Cells) -> str:
    """Variants of the default in the saturated regime: accuracy over the run less the default's own, in points."""
    saturated = {key: cell for key, cell in cells.items() if key[1] == "saturated"}
    names = [name for name in VARIANTS if any(name in cell.runs for cell in saturated.values())]
    columns = over_the_run(saturated, "", names, against=DEFAULT)
    rows = [
        [f"`{name}`: {about(name)}", *(column[place] for column in columns)] for place, name in enumerate(names, 1)
    ]
    return table(["", *(column[0] for column in columns)], rows)


def tokens() -> str:
    """A limit on tokens where hard problems have long answers: accuracy over the run, tokens, and what it took."""
    rows = []
    for (task, regime), cell in load_cells("tokens")[0].items():
        most = cell.last("uniform", "tokens")
        for name in cell.runs:
            if name != "uniform":
                costs = [share(*cell.cost_to_reach_uniform(name, cost)) for cost in ("rollouts", "tokens")]
                spent = f"{cell.last(name, 'tokens') / most:.3f}"
                rows.append([f"{task}, {regime}: `{name}`", points(cell.over(name, "means")), spent, *costs])
    return table(["", "over uniform, points", "tokens over uniform's", "rollouts", "tokens"], rows)


def replay() -> str:
    """Replay, on problems that are next to never solved: accuracy over the run less uniform's, and less the default's."""
    cells = load_cells("rare")[0]
    others = [name for name in next(iter(cells.values())).runs if name != "uniform"]

    def gains(name: str, over: Callable) -> list[str]:
        return [points(over(name, "means", against)) if name != against else "" for against in ("uniform", DEFAULT)]

    rows = []
    for (task, _), cell in cells.items():
        for name in cell.runs:
            gain = gains(name, cell.over) if name in others else ["", ""]
            never, best = f"{cell.mean(name, 'never_solved'):.0f}", f"{cell.last(name, 'pass@8'):.3f}"
            rows.append([f"{task}: `{name}`", str(cell.accuracy(name)), *gain, never, best])
    for name in others:
        over = functools.partial(pooled_over, list(cells.values()))
        rows.append([f"mean of tasks: `{name}`", "", *gains(name, over), "", ""])
    head = ["held-out accuracy", "over uniform, points", f"over `{DEFAULT}`, points", "never solved", "pass@8"]
    return table(["", *head], rows)


def tests(cells: Cells) -> str:
    """Paired tests of the default against uniform over held-out problems."""
    rows = []
    for (task, regime), cell in cells.items():
        result = cell.tests(DEFAULT)
        solved = result["mcnemar"]
        cells_of_row = [
            f"{result['higher']} / {result['lower']}",
            f"{result['wilcoxon']:.2g}",
            f"{solved['only1']:.0f} / {solved['only2']:.0f}",
            f"{solved['p']:.2g}",
        ]
        rows.append([f"{task}, {regime}", *cells_of_row])
    head = [
        "",
        "problems with a higher / lower rate",
        "Wilcoxon p",
        f"solved only by {DEFAULT} / by uniform",
        "McNemar p",
    ]
    return table(head, rows)


def behaviour(cells: Cells) -> str:
    """What the main contenders did with the rollouts, on the tuning task."""
    rows = []
    for (task, regime), cell in cells.items():
        if task == TUNING_TASK:
            for name in SPENDERS:
                if name in cell.runs:
                    rows.append(
                        [
                            f"{regime}: `{name}`",
                            f"{cell.mean(name, 'effective_gradient_ratio'):.2f}",
                            f"{cell.mean(name, 'mixed_prompts'):.2f}",
                            f"{max(result['largest'] for result in cell.runs[name])}",
                            f"{cell.mean(name, 'never_solved'):.0f}",
                            f"{cell.last(name, 'pass@8'):.3f}",
                            f"{cell.last(name, 'tokens') / 1000:.0f}k",
                        ]
                    )
    head = ["", "effective ratio", "mixed prompts", "largest budget", "never solved", "pass@8", "tokens"]
    return table(head, rows)


def learning_rates(profile_name: str) -> str:
    """Score of every learning rate on the tuning seeds."""
    profile = PROFILES[profile_name]
    scores = tuning_table(profile, load_results(profile_name))
    rows = []
    for contender in profile.tuned:
        row = [f"`{contender}`"]
        if np.isnan([scores[regime, contender] for regime in profile.regimes]).any():
            continue
        for regime in profile.regimes:
            values = scores[regime, contender]
            row += [f"**{value:.3f}**" if value == max(values) else f"{value:.3f}" for value in values]
        rows.append(row)
    head = [f"{regime}, {rate:g}" for regime in profile.regimes for rate in profile.learning_rates]
    return table(["", *head], rows)


def information() -> str:
    """Rank correlation of predicted value with what one step brings."""
    results = json.loads((RESULTS / "information.json").read_text())
    rows = []
    for task, result in results.items():
        for value, measured in result["correlations"].items():
            cells = [f"{estimate:.2f} [{low:.2f}, {high:.2f}]" for estimate, low, high in measured.values()]
            rows.append([f"{task}: `{value}`", *cells])
    return table(["", "gradient norm", "gain of the prompt", "gain on held-out prompts"], rows)


def estimators() -> str:
    """What other estimators of the success rates would have been worth, replayed on the drift of real runs."""
    results = json.loads((RESULTS / "estimators.json").read_text())
    regimes = list(results["gap_to_optimum"])
    rows = []
    for name, gains in results["gain"].items():
        intervals = [bootstrap_interval(100 * np.array(gains[regime]), n_resamples=RESAMPLES) for regime in regimes]
        rows.append([name, *(f"{i.estimate:+.1f} [{i.low:+.1f}, {i.high:+.1f}]" for i in intervals)])
    gaps = [f"{results['gap_to_optimum'][regime]:.1e}" for regime in regimes]
    return table(
        ["value over equal counts, %", *regimes], [*rows, ["the solver's largest relative gap to the optimum", *gaps]]
    )


def looks() -> str:
    """What looks and windows would have been worth, replayed on the drift of real runs."""
    results = json.loads((RESULTS / "looks.json").read_text())
    rows = []
    for cell, variants in results.items():
        for name, (first, later, half_first, half_later) in variants.items():
            look, window = name.split(", ")
            cells = [f"{first:+.1f} ± {half_first:.1f}", f"{later:+.1f} ± {half_later:.1f}"]
            rows.append([cell, look, window, *cells])
    return table(["value over equal counts, %", "look", "window", "first epoch", "later"], rows)


def priors() -> str:
    """What features of prompts would have been worth in the first epoch, replayed on the drift of real runs."""
    results = json.loads((RESULTS / "priors.json").read_text())
    rows = []
    for cell, found in results.items():
        cells = [f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]" for estimate, low, high in (found[k] for k in PRIORS)]
        rows.append([cell, f"{found['true rates']:+.1f}", *cells])
    return table(["value over equal counts, %", "true rates", *PRIORS], rows)


def tables(profile_name: str) -> dict[str, str]:
    cells, _ = load_cells(profile_name)
    return {
        "accuracy": accuracy(cells),
        "all-tasks": all_tasks(cells),
        "sooner": sooner(cells),
        "variants": variants(cells),
        "tokens": tokens(),
        "replay": replay(),
        "cost": cost(cells),
        "cost-arithmetic": cost_arithmetic(cells),
        "cost-of-default": cost_of_default(cells),
        "tests": tests(cells),
        "behaviour": behaviour(cells),
        "learning-rates": learning_rates(profile_name),
        "information": information(),
        "estimators": estimators(),
        "looks": looks(),
        "priors": priors(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()

    for name in stale(args.profile):
        print(f"{name} was made under other options than its contender has now", file=sys.stderr)
    made = tables(args.profile)
    if args.profile != "full":
        for name, text in made.items():
            print(f"## {name}\n{text}")
        return
    page = PAGE.read_text()
    new = MARKED.sub(lambda match: match[1] + made[match[2]] + match[3], page)
    if args.check:
        sys.exit("docs/results.md is not what benchmarks/study/report.py makes of the results." if new != page else 0)
    PAGE.write_text(new)
    from figures import draw_all

    draw_all(load_cells(args.profile)[0])


if __name__ == "__main__":
    main()
