"""A real search: transformers puts the checkpoints of each trial into a folder of its own."""

import pytest
import tiny
from trl import GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, SuccessRateTracker


pytest.importorskip("optuna")


@pytest.mark.parametrize("hp_name", [None, lambda trial: f"trial {trial.number}"], ids=["run-0", "named"])
def test_every_trial_has_its_own_folder_and_success_rates(model, tmp_path, hp_name):
    args = KnapsackGRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=6,
        max_steps=3,
        save_strategy="steps",
        save_steps=2,
        prompt_id_column="name",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    given = dict(reward_funcs=tiny.digit_reward, args=args, train_dataset=tiny.prompts())
    trainer = KnapsackGRPOTrainer(model=model, eval_dataset=tiny.prompts(8), **given)
    trainer.model_init = lambda: GRPOTrainer(model=model, **given).model  # with the head that TRL gives it
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
        compute_objective=lambda metrics: metrics["eval_reward"],
        direction="maximize",
        n_trials=2,
        backend="optuna",
        hp_name=hp_name,
    )
    assert best.objective is not None
    for number in range(2):
        run = tmp_path / (f"run-{number}" if hp_name is None else f"trial {number}")
        for state, visits in ((run / "checkpoint-2", 2 * 4), (run, 3 * 4)):
            tracker = SuccessRateTracker()
            tracker.load(state / "knapsack_state.safetensors")
            # 4 prompts a step, each seen once in the first epoch of 8 steps: nothing is left of the trial before
            assert len(tracker) == visits
            assert set(tracker.evidence(tracker.keys).visits) == {1}
    assert not (tmp_path / "knapsack_state.safetensors").exists()
