"""Accuracy of mathematical answers, by math-verify."""

import datasets
import evaluate
import numpy as np
from trl.rewards import accuracy_reward


_DESCRIPTION = """
Share of completions whose mathematical answer equals the solution's, by math-verify as TRL's `accuracy_reward` calls it:
the number that a run with that reward function is trained on.
"""

_KWARGS_DESCRIPTION = r"""
Args:
    predictions (`list` of `str`): Completions. The answer must be LaTeX, a boxed one comes first.
    references (`list` of `str`): Solutions, LaTeX or plain numbers.

Returns:
    accuracy (`float`): Share of right answers; `nan` if no solution can be read.
    rewards (`list` of `float` or `None`): 1 for a right completion, 0 for a wrong one, `None` where math-verify can't read
        the solution. Those are not in `accuracy`.

Examples:
    >>> math_answers = evaluate.load(metric_path("math_answers"))
    >>> math_answers.compute(predictions=[r"So \boxed{\frac{1}{2}}.", r"It is \boxed{3}."], references=["0.5", "$4$"])
    {'accuracy': 0.5, 'rewards': [1.0, 0.0]}
"""

_CITATION = """
@misc{kydlicek2025mathverify,
    title  = {Math-Verify: Math Verification Library},
    author = {Kydlíček, Hynek},
    url    = {https://github.com/huggingface/Math-Verify},
    year   = {2025},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MathAnswers(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://github.com/huggingface/Math-Verify"],
        )

    def _compute(self, predictions, references):
        completions = [[{"role": "assistant", "content": prediction}] for prediction in predictions]
        rewards = accuracy_reward(completions, list(references))
        known = [reward for reward in rewards if reward is not None]
        return {"accuracy": float(np.mean(known)) if known else float("nan"), "rewards": rewards}
