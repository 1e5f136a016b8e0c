"""pass@k: probability that at least one of k completions is right, without bias."""

import datasets
import evaluate
import numpy as np

from trl_knapsack.evaluation import statistics


_DESCRIPTION = r"""
pass@k: the probability that at least one of k completions of a problem is right, averaged over problems. From n
completions of which c are right it is estimated without bias as $1 - \binom{n-c}{k} / \binom{n}{k}$.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `float`): For each problem the rewards of its completions, or 1 for a right completion
        and 0 for a wrong one.
    k (`list` of `int`, defaults to `[1]`): How many completions may be tried; at most the completions of a problem.
    success_threshold (`float`, defaults to 0.5): A completion is right if its reward is at least this.

Returns:
    pass@k (`float`): One entry for each k.

Examples:
    >>> pass_at_k = evaluate.load(metric_path("pass_at_k"))
    >>> pass_at_k.compute(predictions=[[1, 0, 0, 0], [1, 1, 0, 1]], k=[1, 2])
    {'pass@1': 0.5, 'pass@2': 0.75}
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
class PassAtK(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
            reference_urls=["https://huggingface.co/papers/2107.03374"],
        )

    def _compute(self, predictions, k=(1,), success_threshold=0.5):
        n = [len(rewards) for rewards in predictions]
        c = [sum(reward >= success_threshold for reward in rewards) for rewards in predictions]
        return {f"pass@{tries}": float(np.mean(statistics.pass_at_k(n, c, tries))) for tries in k}
