"""avg@k: mean success rate over k completions of every problem."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
avg@k: the share of completions that are right, averaged over problems. It estimates pass@1 with less noise than one
completion per problem.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): For each problem the rewards of its completions, or 1 for a right completion
        and 0 for a wrong one.
    success_threshold (`float`, defaults to 0.5): A completion is right if its reward is at least this.

Returns:
    avg@k (`float`): `k` is the number of completions of a problem, the smallest if they differ. Every problem weighs the
        same.

Examples:
    >>> avg_at_k = evaluate.load(metric_path("avg_at_k"))
    >>> avg_at_k.compute(predictions=[[1, 0, 0, 0], [1, 1, 0, 1]])
    {'avg@4': 0.5}
"""

_CITATION = """
@article{chen2021evaluating,
    title   = {Evaluating Large Language Models Trained on Code},
    author  = {Chen, Mark and Tworek, Jerry and Jun, Heewoo and Yuan, Qiming and others},
    journal = {arXiv preprint arXiv:2107.03374},
    year    = {2021},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AvgAtK(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://huggingface.co/papers/2107.03374"],
        )

    def _compute(self, predictions, success_threshold=0.5):
        for number, rewards in enumerate(predictions):
            if not len(rewards):
                raise ValueError(f"Problem {number} has no completions; leave it out of predictions.")
        k = min(len(rewards) for rewards in predictions)
        rates = [np.mean([reward >= success_threshold for reward in rewards]) for rewards in predictions]
        return {f"avg@{k}": float(np.mean(rates))}
