"""Adapters of PEFT: the run of `GRPOTrainer` with equal groups, and right groups and advantages with unequal ones."""

import peft
import pytest
import tiny
import torch
from oracle import advantages, greedy
from runs import assert_same_run, options, train
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


def lora(**changes):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **changes)


def no_adapter(model, folder):
    return {"model": model}


def fresh_lora(model, folder):
    return {"model": model, "peft_config": lora()}


def fresh_dora(model, folder):
    return {"model": model, "peft_config": lora(use_dora=True)}


def pretrained(model, folder):
    """An adapter that is not zero, loaded from a folder as a user would."""
    if not folder.exists():
        torch.manual_seed(1)
        adapter = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora(init_lora_weights=False))
        adapter.save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(model)
    return {"model": peft.PeftModel.from_pretrained(base, folder, is_trainable=True)}


ADAPTERS = pytest.mark.parametrize("adapter", [fresh_lora, fresh_dora, pretrained])
REFERENCE = pytest.mark.parametrize("beta", [0.0, 0.1], ids=["no reference", "reference"])


class Rows:
    """A reward function that keeps the rows of each generation batch."""

    __name__ = "digit_reward"

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, completions, **kwargs):
        rewards = tiny.digit_reward(prompts, completions)
        self.batches.append((list(prompts), rewards))
        return rewards


def run(trainer_class, args, start, **kwargs):
    start = dict(start)
    return train(trainer_class, start.pop("model"), args, **start, **kwargs)


def trained(trainer):
    return {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


@ADAPTERS
@REFERENCE
def test_equal_groups_are_bit_for_bit_grpo(model, tmp_path, adapter, beta):
    arguments = options(tmp_path, max_steps=10, beta=beta, num_iterations=2, learning_rate=1e-1)
    theirs = run(GRPOTrainer, GRPOConfig(**arguments), adapter(model, tmp_path / "adapter"))
    ours = run(
        KnapsackGRPOTrainer,
        KnapsackGRPOConfig(**arguments, allocation="uniform"),
        adapter(model, tmp_path / "adapter"),
    )
    assert_same_run(ours, theirs)
    assert trained(ours) == trained(theirs)
    assert all("lora" in name for name in trained(ours))
    assert ("kl" in ours.state.log_history[-2]) == (beta > 0)


@ADAPTERS
@REFERENCE
def test_budgets_move_rollouts_and_advantages_follow(model, tmp_path, adapter, beta):
    rows, logged = Rows(), []
    # A higher learning rate than without adapters: their matrices begin at zero.
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=8, beta=beta, learning_rate=1e-1))

    class Watched(KnapsackGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            logged.append(output["advantages"].tolist())
            return output

    start = adapter(model, tmp_path / "adapter")
    before = {name: p.clone() for name, p in AutoModelForCausalLM.from_pretrained(model).named_parameters()}
    trainer = run(Watched, args, start, rewards=rows)

    moved = 0
    for record, (prompts, rewards), got in zip(trainer.records, rows.batches, logged, strict=True):
        counts = record.allocation.counts.tolist()
        best = greedy(record.evidence.alpha.tolist(), record.evidence.beta.tolist(), 32, 2, 128)
        assert sorted(counts) == sorted(best)
        moved += len(set(counts)) > 1
        places = iter(prompts)
        assert all(len({next(places) for _ in range(count)}) == 1 for count in counts)  # a group is one prompt
        expected = advantages([[reward] for reward in rewards], counts, [1.0], "group", "sum_then_normalize")
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert moved >= 3

    # Only the adapter has learnt.
    base = trainer.model.get_base_model()
    for name, parameter in base.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, before[name.replace("base_layer.", "")]), name
    assert any(parameter.abs().sum() > 0 for name, parameter in base.named_parameters() if "lora_B" in name)


def test_a_resumed_adapter_goes_on_exactly(model, tmp_path):
    arguments = options(tmp_path, save_strategy="steps", save_steps=6, max_steps=10, learning_rate=1e-1, beta=0.1)
    whole = run(KnapsackGRPOTrainer, KnapsackGRPOConfig(**arguments), fresh_lora(model, tmp_path))
    resumed = run(
        KnapsackGRPOTrainer,
        KnapsackGRPOConfig(**arguments),
        fresh_lora(model, tmp_path),
        resume=str(tmp_path / "checkpoint-6"),
    )
    assert resumed.gradients == whole.gradients[6:]
    assert [r.allocation.counts.tolist() for r in resumed.records] == [
        r.allocation.counts.tolist() for r in whole.records[6:]
    ]


@pytest.mark.slow
def test_qlora_trains_on_a_cpu(model, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    arguments = options(
        tmp_path,
        max_steps=10,
        learning_rate=1e-1,
        model_init_kwargs={
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
            )
        },
    )
    theirs = run(GRPOTrainer, GRPOConfig(**arguments), fresh_lora(model, tmp_path))
    ours = run(KnapsackGRPOTrainer, KnapsackGRPOConfig(**arguments, allocation="uniform"), fresh_lora(model, tmp_path))
    assert_same_run(ours, theirs)
    layer = ours.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    budgets = run(KnapsackGRPOTrainer, KnapsackGRPOConfig(**arguments), fresh_lora(model, tmp_path))
    assert any(len(set(record.allocation.counts)) > 1 for record in budgets.records)
