"""Compares the log-probabilities of vLLM with those of the trainer."""

import torch


def assert_same_log_probabilities(trainer):
    """What vLLM sampled with and what the trainer computes, token by token."""
    for output in trainer.outputs:
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:  # what a tool said was not sampled
            mask &= output["tool_mask"].bool()
        sampled, computed = output["sampling_per_token_logps"][mask], output["old_per_token_logps"][mask]
        assert sampled.numel() > 50
        assert sampled.std() > 0.1
        torch.testing.assert_close(computed, sampled, atol=0.01, rtol=0)
