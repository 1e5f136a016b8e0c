"""
Who owns a field: the experiment, so that it can be published and accepted from a stranger, or the user's machine, accounts and
files.

Only the fields of TRL that are listed here belong to the experiment. A field that a later TRL adds is therefore the user's until
it is listed, and a test names it.
"""

import dataclasses
import functools
from typing import Any

from trl import GRPOConfig


# What decides the outcome of a run, and what is logged of it.
_EXPERIMENT = {
    # optimisation
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args", "optim_target_modules"),
    *(
        "num_train_epochs",
        "max_steps",
        "neftune_noise_alpha",
        "label_smoothing_factor",
        "average_tokens_across_devices",
    ),
    # batches, precision, and what saves memory at the cost of time
    *(
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "eval_accumulation_steps",
    ),
    *("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "cast_lm_head_to_fp32", "pad_to_multiple_of"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
    *(
        "activation_checkpointing_kwargs",
        "use_liger_kernel",
        "liger_kernel_config",
        "use_cache",
        "cache_implementation",
    ),
    # data and chance
    *("seed", "data_seed", "full_determinism", "shuffle_dataset", "train_sampling_strategy", "dataloader_drop_last"),
    *("remove_unused_columns", "label_names", "length_column_name", "ignore_data_skip"),
    # the model
    *("model_init_kwargs", "disable_dropout", "router_aux_loss_coef", "chat_template_kwargs"),
    *("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    # rollouts
    *("num_generations", "num_generations_eval", "generation_batch_size", "steps_per_generation", "num_iterations"),
    *("max_prompt_length", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *(
        "generation_kwargs",
        "max_tool_calling_iterations",
        "mask_truncated_completions",
        "use_vllm",
        "vllm_max_model_length",
    ),
    *("vllm_structured_outputs_regex", "use_transformers_continuous_batching", "use_transformers_paged"),
    *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_cap"),
    *("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"),
    # rewards and loss
    *("beta", "epsilon", "epsilon_high", "delta", "loss_type", "scale_rewards", "reward_weights"),
    *(
        "multi_objective_aggregation",
        "importance_sampling_level",
        "off_policy_mask_threshold",
        "use_bias_correction_kl",
    ),
    *("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max"),
    *("entropy_coef_delta", "entropy_target", "sapo_temperature_neg", "sapo_temperature_pos"),
    *("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
    # evaluation and logs
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_do_concat_batches", "batch_eval_metrics"),
    *("metric_for_best_model", "greater_is_better", "prediction_loss_only", "include_for_metrics"),
    *("include_num_input_tokens_seen", "logging_strategy", "logging_steps", "logging_first_step"),
    *("logging_nan_inf_filter", "log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"),
}

# What concerns one machine, one account, or one run; and what would run code from elsewhere.
_PERSONAL = {
    *("output_dir", "overwrite_output_dir", "logging_dir", "run_name", "project", "report_to", "disable_tqdm"),
    *("push_to_hub", "log_completions_hub_repo", "resume_from_checkpoint", "resume_success_state"),
    *("use_cpu", "no_cuda", "use_mps_device", "local_rank", "deepspeed", "accelerator_config", "parallelism_config"),
    *("do_train", "do_eval", "do_predict", "debug", "log_on_each_node", "save_on_each_node"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port"),
    *("restore_callback_states_from_checkpoint", "trust_remote_code"),
}
_PERSONAL_PREFIXES = ("hub_", "trackio_", "push_to_hub_", "log_level", "ddp_", "fsdp")

# TRL's other fields that were looked at: speed, memory and files. `save_` may fill a disk, or empty it of checkpoints.
_MACHINE = {
    *("auto_find_batch_size", "torch_empty_cache_steps", "skip_memory_metrics", "eval_use_gather_object"),
    *("ds3_gather_for_generation", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_server_timeout"),
    *("vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "transformers_continuous_batching_config"),
    *("load_best_model_at_end", "enable_jit_checkpoint"),
}
_MACHINE_PREFIXES = ("save_", "dataloader_", "torch_compile")

# What a configuration from the Hub may ask of the model's loading: numbers and names, no code.
_SAFE_MODEL_KWARGS = {
    *("revision", "dtype", "torch_dtype", "attn_implementation", "use_cache"),
    *("rope_scaling", "rope_parameters", "max_position_embeddings", "sliding_window"),
}
_RUNS_CODE = {"trust_remote_code", "custom_generate", "code_revision", "weights_only", "use_kernels", "kernel_config"}


def is_personal(name: str) -> bool:
    """Whether a field concerns one machine, account or run: not saved, and not accepted from the Hub."""
    if name in _PERSONAL or name.startswith(_PERSONAL_PREFIXES):
        return True
    return name in _fields_of_trl() and name not in _EXPERIMENT


def is_unsorted(name: str) -> bool:
    """Whether TRL has the field and nobody has said yet whose it is; it is the user's until then."""
    known = name in _PERSONAL or name in _MACHINE or name.startswith(_PERSONAL_PREFIXES + _MACHINE_PREFIXES)
    return is_personal(name) and not known


def is_yours(name: str, path: str, key: str, item: Any) -> bool:
    """Whether `item`, at `path` within the field `name`, is for the user of a machine alone to decide."""
    return (
        is_personal(key)
        or key in _RUNS_CODE
        or (key == "attn_implementation" and "/" in str(item))  # a kernel from the Hub is code
        or (key == "reward_funcs" and "." in str(item))  # and so is a function by its path
        or (name == "model_init_kwargs" and path.count(".") == 1 and key not in _SAFE_MODEL_KWARGS)
    )


@functools.cache
def _fields_of_trl() -> frozenset[str]:
    return frozenset(option.name for option in dataclasses.fields(GRPOConfig))
