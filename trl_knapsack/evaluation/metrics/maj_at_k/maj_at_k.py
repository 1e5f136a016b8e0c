"""maj@k: probability that the majority vote of k completions is right, exactly."""

from collections import Counter

import datasets
import evaluate
import numpy as np

from trl_knapsack.evaluation import statistics
from trl_knapsack.evaluation.answers import exact_answers, math_answers, math_equal


_DESCRIPTION = """
maj@k (self-consistency): the probability that the most frequent answer among k completions of a problem is right,
averaged over problems. It is the exact mean over all subsets of size k, not a sample of them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `list` of `str`): For each problem its completions.
    references (`list` of `str`): For each problem its solution.
    k (`list` of `int`, *optional*): How many completions vote; at most the completions of a problem. By default all
        completions, of the problem that has the fewest.
    answers (`str`, defaults to `"math"`): `"math"` takes the answers out of completions and solutions with math-verify, and
        answers that are equal mathematically are one answer. `"exact"` takes whole texts, without the white space around
        them.

Returns:
    maj@k (`float`): One entry for each k. Of answers that are equally frequent each is taken with the same probability. A
        completion without an answer votes for nothing; if none of the k has one, the vote is wrong.

Examples:
    >>> maj_at_k = evaluate.load(metric_path("maj_at_k"))
    >>> maj_at_k.compute(predictions=[["4", "5", "4"], ["7", "7", "8"]], references=["4", "8"], k=[1, 3], answers="exact")
    {'maj@1': 0.5, 'maj@3': 0.5}
"""

_CITATION = """
@inproceedings{wang2023selfconsistency,
    title     = {Self-Consistency Improves Chain of Thought Reasoning in Language Models},
    author    = {Wang, Xuezhi and Wei, Jason and Schuurmans, Dale and Le, Quoc V. and Chi, Ed H. and Narang, Sharan and
                 Chowdhery, Aakanksha and Zhou, Denny},
    booktitle = {International Conference on Learning Representations},
    year      = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MajAtK(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
            reference_urls=["https://huggingface.co/papers/2203.11171"],
        )

    def _compute(self, predictions, references, k=None, answers="math"):
        if answers not in ("math", "exact"):
            raise ValueError(f"answers ({answers!r}) must be 'math' or 'exact'.")
        find = math_answers if answers == "math" else exact_answers
        k = [min(len(completions) for completions in predictions)] if k is None else k
        problems = []
        for completions, solution in zip(predictions, references, strict=True):
            found = find(completions)
            votes = Counter(answer for answer in found if answer is not None)
            first = {
                answer: completion for completion, answer in zip(reversed(completions), reversed(found), strict=True)
            }
            if answers == "math":
                right = [float(math_equal(first[answer], solution)) for answer in votes]
            else:
                right = [float(answer == solution.strip()) for answer in votes]
            problems.append((list(votes.values()), right, found.count(None)))
        return {
            f"maj@{voters}": float(
                np.mean([statistics.majority_at_k(votes, right, voters, none) for votes, right, none in problems])
            )
            for voters in k
        }
