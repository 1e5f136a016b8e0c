"""vLLM on the CPU, in the process of the trainer: run it in a process of its own, as `make test-vllm` does."""

import tiny_chat
from backends import Spy, assert_rows, config, run
from log_probabilities import assert_same_log_probabilities
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_colocate_mode(plain_linear_layers, tmp_path):
    """New weights reach the engine in every step: else the log-probabilities would part."""
    model = tiny_chat.save_model(tmp_path / "model", initializer_range=0.02)
    dataset, spy = tiny_chat.prompts(), Spy()
    args = config(
        tmp_path, use_vllm=True, vllm_mode="colocate", vllm_max_model_length=64, learning_rate=0.01, max_steps=5
    )
    trainer = run(model, args, rewards=spy, dataset=dataset)
    assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(model))
    assert_same_log_probabilities(trainer)
    before = AutoModelForCausalLM.from_pretrained(model)
    moved = [(a - b).abs().max() for a, b in zip(trainer.model.parameters(), before.parameters(), strict=True)]
    assert max(moved) > 0.01

    # A seed is TRL's own trap here: all rows of a prompt are the same completion, in equal groups too.
    trainer.vllm_generation.generation_kwargs = {"seed": 1}
    _, completion_ids, _, _ = trainer.vllm_generation.generate([[3, 19, 7, 8, 4]] * 4, images=None, num_generations=4)
    assert len({tuple(ids) for ids in completion_ids}) == 1
