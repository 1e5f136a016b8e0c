"""Wilcoxon's signed-rank test between two runs on the same problems."""

import datasets
import evaluate

from trl_knapsack.evaluation import statistics


_DESCRIPTION = """
Wilcoxon's signed-rank test (two-sided) on a number per problem from two runs: is the difference symmetric about zero?
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions1 (`list` of `float`): One number per problem from the first run, for example its success rate.
    predictions2 (`list` of `float`): The same problems in the same order from the second run.

Returns:
    stat (`float`): The smaller sum of ranks. 0 if all numbers are equal.
    p (`float`): The p value. 1 if all numbers are equal.

Examples:
    >>> wilcoxon = evaluate.load(metric_path("wilcoxon"))
    >>> wilcoxon.compute(predictions1=[0.5, 1.0, 0.75, 0.25], predictions2=[0.25, 0.5, 0.0, 0.25])
    {'stat': 0.0, 'p': 0.25}
"""

_CITATION = """
@article{wilcoxon1945individual,
    title   = {Individual Comparisons by Ranking Methods},
    author  = {Wilcoxon, Frank},
    journal = {Biometrics Bulletin},
    volume  = {1},
    number  = {6},
    pages   = {80--83},
    year    = {1945},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Wilcoxon(evaluate.Comparison):
    def _info(self):
        return evaluate.ComparisonInfo(
            module_type="comparison",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions1": datasets.Value("float64"), "predictions2": datasets.Value("float64")}
            ),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.wilcoxon.html"],
        )

    def _compute(self, predictions1, predictions2):
        return statistics.wilcoxon(predictions1, predictions2)
