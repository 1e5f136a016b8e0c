"""
The tables and the figure of the benchmark's results, and of docs/results.md.

    python benchmarks/language_model/summary.py --results benchmarks/language_model/results/cpu
    python benchmarks/language_model/summary.py --write    # those that are published, into the page and its figure

Between `<!-- language model: NAME -->` and `<!-- end -->` the page belongs to this program.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from profiles import CONTENDERS, HERE, ROOT

from trl_knapsack.evaluation import EvaluationResults, Interval, bootstrap_interval
from trl_knapsack.evaluation.results import problem_of_line


sys.path.append(str(ROOT / "benchmarks" / "study"))

from analysis import LEAST_SEEDS, over_seeds  # noqa: E402
from report import table  # noqa: E402


PAGE = ROOT / "docs" / "results.md"
PUBLISHED = HERE / "results" / "cpu"
FIGURE = ROOT / "docs" / "figures" / "language_model.png"
COLORS = {"uniform": "#888888", "posterior": "#17becf", "look": "#1f77b4"}
MARKED = re.compile(r"(<!-- language model: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(folder: Path) -> dict[str, str]:
    """Each table that the results in a folder are enough for, by its name."""
    made = {}
    runs = load_runs(folder)
    if runs:
        made |= {"accuracy": accuracy(runs), "families": families(runs)}
    file = folder / "hidden_state.json"
    if file.is_file():
        made["hidden-state"] = hidden_state(json.loads(file.read_text()))
    return made


def load_runs(folder: Path) -> dict[tuple[str, str, int], list[dict]]:
    """Results by contender, weights and steps, in the order of their seeds."""
    file = folder / "runs.jsonl"
    runs: dict[tuple[str, str, int], list[dict]] = {}
    for line in sorted(map(json.loads, file.read_text().splitlines() if file.is_file() else ()), key=order):
        runs.setdefault((line["contender"], line["weights"], line["steps"]), []).append(line)
    return runs


def order(line: dict) -> tuple:
    contenders = ["before", *CONTENDERS]
    return line["weights"], line["steps"], contenders.index(line["contender"]), line["seed"]


def scores(results: list[dict], part: str) -> dict[str, np.ndarray]:
    """avg@n and pass@k of each seed and problem, `(S, P)`, by name."""
    of_seeds = [
        EvaluationResults(
            problem_of_line({"id": problem, "n": result["completions"], "c": c}) for problem, c in result[part].items()
        ).scores()
        for result in results
    ]
    return {name: np.stack([one[name] for one in of_seeds]) for name in of_seeds[0]}


def estimate(values: np.ndarray) -> Interval:
    """Mean of `values`, `(S, P)`, with 95 %: over seeds by Student's t if there are enough, else over problems by the bootstrap."""
    if len(values) < LEAST_SEEDS:
        return bootstrap_interval(values.mean(axis=0))
    return over_seeds(values.mean(axis=1))


def accuracy(runs: dict[tuple[str, str, int], list[dict]]) -> str:
    """A row for each contender: held-out problems, those of families that were never trained on, and use of rollouts."""
    rows, head = [], []
    for (contender, weights, steps), results in runs.items():
        held_out, elsewhere = scores(results, "held_out"), scores(results, "elsewhere")
        average, *_, best = held_out  # avg@n, pass@2, ..., pass@n
        uniform = runs.get(("uniform", weights, steps), [])
        difference = ""
        if contender not in ("before", "uniform") and len(uniform) == len(results):
            difference = signed(estimate(held_out[average] - scores(uniform, "held_out")[average]))
        ratio = [np.mean(result["effective_gradient_ratio"]) for result in results if steps]
        label = contender if not steps else f"`{contender}`, {weights}, {steps} steps x {len(results)}"
        rows.append(
            [
                label,
                str(estimate(held_out[average])),
                difference,
                str(estimate(held_out[best])),
                str(estimate(elsewhere[average])),
                f"{np.mean(ratio):.2f}" if ratio else "",
            ]
        )
        head = ["", f"held out, {average}", "less uniform", best, f"never trained, {average}", "effective ratio"]
    return table(head, rows)


def families(runs: dict[tuple[str, str, int], list[dict]]) -> str:
    """By family: rollouts for a visit, share of them in mixed groups, and success rates while training and on held-out problems."""
    rows = []
    before = runs.get(("before", "", 0))
    for (contender, weights, _), results in runs.items():
        for family in results[0].get("families", {}):
            sums = {
                what: sum(result["families"][family][what] for result in results)
                for what in ("rollouts", "visits", "effective")
            }
            halves = [
                np.mean([result["families"][family][half] for result in results])
                for half in ("first_half", "second_half")
            ]
            rows.append(
                [
                    f"{family}, `{contender}`, {weights}",
                    f"{sums['rollouts'] / sums['visits']:.1f}",
                    f"{sums['effective'] / sums['rollouts']:.2f}",
                    f"{halves[0]:.2f}, {halves[1]:.2f}",
                    f"{rate(before, family)}, {rate(results, family)}",
                ]
            )
    rows.sort(key=lambda row: row[0].split(",")[0])
    return table(
        [
            "",
            "rollouts a visit",
            "effective ratio",
            "success rate, first and second half",
            "held out, before and after",
        ],
        rows,
    )


def rate(results: list[dict] | None, family: str) -> str:
    """Success rate on a family's held-out problems."""
    of = [
        c / result["completions"]
        for result in results or ()
        for id, c in result["held_out"].items()
        if id.split()[0] == family
    ]
    return f"{np.mean(of):.2f}" if of else "-"


def hidden_state(result: dict) -> str:
    """What the layers know of prompts and of families that the regression has not seen."""
    layers = result["layers"]
    last = len(layers) - 1
    shown = sorted({0, last // 4, last // 2, 3 * last // 4, last})
    rows = [["the family alone", *cells(result["family_means"]), "", ""]]
    for i in shown:
        elsewhere = cells(layers[i]["held_out_families"])
        name = "embedding" if i == 0 else f"layer {i} of {last}"
        rows.append([name, *cells(layers[i]["held_out_prompts"]), elsewhere[1], elsewhere[3]])
    rows.append(["8 completions against the other 8", bracket(result["half_against_half"]), "", "", "", "", ""])
    head = ["", "rank correlation", "within a family", "absolute error", "calibration error"]
    return table([*head, "new family: rank correlation within", "calibration error"], rows)


def cells(score: dict) -> list[str]:
    return [
        bracket(score[name]) for name in ("rank_correlation", "within_families", "absolute_error", "calibration_error")
    ]


def bracket(values: list[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def signed(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def draw(folder: Path, file: Path) -> None:
    """The figure: where the rollouts of the runs with LoRA went, how many of them taught, and what each layer knows."""
    shown = {key[0]: results for key, results in load_runs(folder).items() if key[1] == "lora"}
    layers = json.loads((folder / "hidden_state.json").read_text())["layers"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    rates = {  # of the first of them, equal counts
        family: of["successes"] / of["rollouts"] for family, of in next(iter(shown.values()))[0]["families"].items()
    }
    names = sorted(rates, key=lambda family: rates[family])
    for contender, results in shown.items():
        sums = [
            [sum(run["families"][name][what] for run in results) for name in names] for what in ("rollouts", "visits")
        ]
        left.plot(np.divide(*sums), range(len(names)), "o", color=COLORS[contender])
        ratios = np.mean([result["effective_gradient_ratio"] for result in results], axis=0)
        middle.plot(np.arange(1, len(ratios) + 1), ratios, color=COLORS[contender], label=contender)
    left.set(xlabel="rollouts for each visit, with LoRA", xlim=(0, None))
    left.set_yticks(range(len(names)), [f"{name}: {rates[name]:.2f}" for name in names])
    left.set_title("family: success rate in training", fontsize="medium", loc="left")
    middle.set(xlabel="step, with LoRA", ylabel="effective gradient ratio", ylim=(0, 1))
    middle.legend(frameon=False, loc="lower left")
    for part, color, label in (
        ("held_out_prompts", "#1f77b4", "prompts of known families"),
        ("held_out_families", "#ff7f0e", "prompts of a new family"),
    ):
        middle_line, low, high = np.transpose([layer[part]["within_families"] for layer in layers])
        right.plot(middle_line, color=color, label=label)
        right.fill_between(range(len(layers)), low, high, color=color, alpha=0.15, lw=0)
    right.axhline(0, color="black", lw=0.5)
    right.set(xlabel="layer", ylabel="rank correlation within a family")
    right.legend(frameon=False)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def written(page: str) -> str:
    """The page with the tables of the published results."""
    made = tables(PUBLISHED)
    return MARKED.sub(lambda match: match[1] + made[match[2]] + match[3], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=PUBLISHED, help="folder of results (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the published tables and their figure")
    args = parser.parse_args()
    if args.write:
        PAGE.write_text(written(PAGE.read_text()))
        draw(PUBLISHED, FIGURE)
        return
    for name, text in tables(args.results).items():
        print(f"{name}\n{text}")


if __name__ == "__main__":
    main()
