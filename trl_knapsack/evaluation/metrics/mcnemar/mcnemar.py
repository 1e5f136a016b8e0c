"""McNemar's exact test between two runs on the same problems."""

import datasets
import evaluate

from trl_knapsack.evaluation import statistics


_DESCRIPTION = """
McNemar's exact test on two runs' answers to the same problems: of the problems that only one run gets right, are there
more of one run than of the other?
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions1 (`list` of `int`): One label per problem from the first run; for solved or not, 1 or 0.
    predictions2 (`list` of `int`): The same problems in the same order from the second run.
    references (`list` of `int`): The right labels; for solved or not, all 1.

Returns:
    stat (`float`): The smaller of `only1` and `only2`.
    p (`float`): The p value, from the binomial distribution. 1 if both runs are right and wrong on the same problems.
    only1 (`int`): Problems that only the first run gets right.
    only2 (`int`): Problems that only the second run gets right.

Examples:
    >>> mcnemar = evaluate.load(metric_path("mcnemar"))
    >>> mcnemar.compute(predictions1=[1, 1, 1, 0], predictions2=[0, 0, 1, 1], references=[1, 1, 1, 1])
    {'stat': 1.0, 'p': 1.0, 'only1': 2, 'only2': 1}
"""

_CITATION = """
@article{mcnemar1947note,
    title   = {Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages},
    author  = {McNemar, Quinn},
    journal = {Psychometrika},
    volume  = {12},
    number  = {2},
    pages   = {153--157},
    year    = {1947},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Mcnemar(evaluate.Comparison):
    def _info(self):
        return evaluate.ComparisonInfo(
            module_type="comparison",
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions1": datasets.Value("int64"),
                    "predictions2": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.binomtest.html"],
        )

    def _compute(self, predictions1, predictions2, references):
        right1 = [label == right for label, right in zip(predictions1, references, strict=True)]
        right2 = [label == right for label, right in zip(predictions2, references, strict=True)]
        return statistics.mcnemar(right1, right2)
