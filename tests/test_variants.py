"""What the study tries beside the package (benchmarks/study/variants.py), against plain PyTorch."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from runs import options
from transformers import AutoTokenizer, Qwen2ForCausalLM, TrainerCallback

from trl_knapsack import KnapsackGRPOConfig


sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "study"))

from variants import Replay  # noqa: E402


ROLLOUTS = 10


class Watch(TrainerCallback):
    """Weights before each step, and the gradients of it."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})


def token_log_probs(model, prompt, completion):
    """Log-probabilities of a completion's tokens, `(T,)`."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.mark.parametrize("wins", [1, 2])
def test_a_replayed_group_has_the_gradient_of_its_loss_written_out(model, tmp_path, wins):
    """The group of the first step has `wins` successes, that of the second none: one in ten is rare, two are not."""
    generated = []

    def reward(prompts, completions, completion_ids, **kwargs):
        generated.append([list(ids) for ids in completion_ids])
        return [float(len(generated) == 1 and row < wins) for row in range(len(completions))]

    watch = Watch()
    args = KnapsackGRPOConfig(
        **options(
            tmp_path,
            per_device_train_batch_size=ROLLOUTS,
            gradient_accumulation_steps=1,
            num_generations=ROLLOUTS,
            max_steps=2,
            learning_rate=1e-3,  # so small that no ratio is clipped
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            look_generations=0,
            allocation_window=1,
            seed=3,
        )
    )
    trainer = Replay(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["m07"]}),
        callbacks=[watch],
    )
    trainer.train()

    policy = Qwen2ForCausalLM.from_pretrained(model)
    prompt = AutoTokenizer.from_pretrained(model)("m07")["input_ids"]
    first, second = generated
    if wins > 1:
        assert all(not gradient.any() for gradient in watch.gradients[1].values())
        return
    policy.load_state_dict(watch.weights[0])
    with torch.no_grad():
        made_with = token_log_probs(policy, prompt, first[0])  # when the success was made
    policy.load_state_dict(watch.weights[1])
    rows = [first[0], *second[1:]]  # a failure has gone
    rewards = torch.tensor([1.0] + [0.0] * (ROLLOUTS - 1))
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    loss = 0.0
    for row, advantage in zip(rows, advantages, strict=True):
        log_probs = token_log_probs(policy, prompt, row)
        ratio = (log_probs - (made_with if row is first[0] else log_probs.detach())).exp()
        loss -= torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum() / sum(map(len, rows))
    loss.backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(watch.gradients[1][name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert any(gradient.any() for gradient in watch.gradients[1].values())
