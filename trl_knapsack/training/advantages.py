"""Group-relative advantages for groups of unequal size."""

from typing import NamedTuple

import torch
from trl.trainer.utils import nanstd


class GroupAdvantages(NamedTuple):
    """
    Advantages of one generation batch of `R` rollouts in `P` groups.

    Attributes:
        advantages (`torch.Tensor` of shape `(R,)`): 0 for rollouts that no reward function scored.
        zero_std (`torch.Tensor` of shape `(R,)`, bool): What TRL averages into `frac_reward_zero_std`.
        mean_reward (`torch.Tensor` of shape `(P,)`): Mean reward of each group's rollouts in this batch, NaN where none
            was scored.
        mixed (`torch.Tensor` of shape `(P,)`, bool): Whether the rewards of the group vary.
    """

    advantages: torch.Tensor
    zero_std: torch.Tensor
    mean_reward: torch.Tensor
    mixed: torch.Tensor


def weighted_rewards(rewards_per_func: torch.Tensor, reward_weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over reward functions, `(R, F) -> (R,)`; NaN where every function returned None."""
    rewards = (rewards_per_func * reward_weights.to(rewards_per_func.device)).nansum(dim=1)
    return rewards.masked_fill(torch.isnan(rewards_per_func).all(dim=1), torch.nan)


def group_advantages(
    rewards_per_func: torch.Tensor,
    group: torch.Tensor,
    reward_weights: torch.Tensor,
    scale_rewards: str,
    multi_objective_aggregation: str,
    earlier: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> GroupAdvantages:
    """
    GRPO's advantages with each group normalised by itself, whatever its size.

    The groups are laid into a `(P, longest)` matrix padded with NaN, so that TRL's nan-aware reductions apply, and give
    TRL's bits when the groups are equal.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(R, F)`): Rewards of all ranks, NaN where a function returned None.
        group (`torch.Tensor` of shape `(R,)`, int64): Group of each rollout, `0` to `P - 1`, in any order.
        reward_weights (`torch.Tensor` of shape `(F,)`): Weight of each reward function.
        scale_rewards (`str`): `"group"`, `"batch"` or `"none"`, as in [`~trl.GRPOConfig`].
        multi_objective_aggregation (`str`): `"sum_then_normalize"` or `"normalize_then_sum"`.
        earlier (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Rewards `(E, F)` and groups `(E,)` of rollouts that the prompts got before. They count in the mean and the
            spread of their group: drawn before and apart from these rollouts, they bias nothing (`docs/method.md`).

    Returns:
        [`GroupAdvantages`]
    """
    rows = len(rewards_per_func)  # the others, from here on behind them, are only compared with
    if earlier is not None:
        rewards_per_func = torch.cat([rewards_per_func, earlier[0].to(rewards_per_func)])
        group = torch.cat([group, earlier[1].to(group.device)])
    group = group.to(rewards_per_func.device)
    counts = torch.bincount(group)  # (P,)
    place = torch.empty_like(group)  # of each rollout within its group
    place[group.argsort(stable=True)] = torch.cat([torch.arange(n, device=group.device) for n in counts.tolist()])

    def in_groups(x: torch.Tensor) -> torch.Tensor:  # (R, ...) -> (P, longest, ...)
        padded = x.new_full((len(counts), int(counts.max()), *x.shape[1:]), torch.nan)
        padded[group, place] = x
        return padded

    rewards = weighted_rewards(rewards_per_func, reward_weights)  # (R,)
    grouped = in_groups(rewards)  # (P, longest)
    mean_reward = torch.nanmean(grouped, dim=1)  # (P,)

    if multi_objective_aggregation == "sum_then_normalize":
        group_std = nanstd(grouped, dim=1)  # (P,), NaN where fewer than two were scored
        mixed = group_std > 1e-8  # the tolerance of torch.isclose, as TRL's frac_reward_zero_std
        std = nanstd(rewards[:rows]).expand_as(rewards) if scale_rewards == "batch" else group_std[group]
        advantages = rewards - mean_reward[group]
        if scale_rewards != "none":
            advantages = advantages / (std + 1e-4)
    else:
        per_func = in_groups(rewards_per_func)  # (P, longest, F)
        func_std = nanstd(per_func, dim=1, keepdim=True)  # (P, 1, F)
        mixed = (func_std > 1e-8).any(dim=2).squeeze(1)
        normalized = (per_func - torch.nanmean(per_func, dim=1, keepdim=True)) / (func_std + 1e-4)
        summed = (normalized[group, place] * reward_weights.to(rewards.device)).nansum(dim=1)  # (R,)
        summed = summed.masked_fill(torch.isnan(rewards), torch.nan)
        std = nanstd(summed[:rows]).expand_as(summed)
        advantages = (summed - torch.nanmean(summed[:rows])) / (std + 1e-4)

    if earlier is not None:
        rewards[rows:] = torch.nan
        mean_reward = torch.nanmean(in_groups(rewards), dim=1)  # of these rollouts only
    zero_std = torch.isclose(std, torch.zeros_like(std))
    return GroupAdvantages(torch.nan_to_num(advantages, nan=0.0)[:rows], zero_std[:rows], mean_reward, mixed)
