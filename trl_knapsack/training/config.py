"""`GRPOConfig` with the few options of Knapsack GRPO."""

import copy
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from ..allocation.rules import RULES, PosteriorRule
from ..errors import InvalidInputError
from ..hub.configs import HubConfig
from ..hub.ownership import is_personal
from ..tracking.features import check_columns
from ..tracking.tracker import SuccessRateTracker, check_success_threshold


@dataclass
class KnapsackGRPOConfig(HubConfig, GRPOConfig):
    r"""
    Configuration of the [`KnapsackGRPOTrainer`]: [`~trl.GRPOConfig`] and the options below.

    `num_generations` keeps its meaning as the mean number of generations per prompt, and `generation_batch_size` is the
    budget of rollouts that is shared out within each generation batch.

    Args:
        allocation (`str`, *optional*, defaults to `"posterior"`):
            How rollouts are shared out over the prompts of a generation batch: `"posterior"` maximises the expected
            value under each prompt's Beta posterior, `"paper"` uses the rates of the last epoch as in
            [Knapsack RL](https://huggingface.co/papers/2509.25849), `"filter"` gives prompts that last succeeded always
            or never `min_generations` and shares the rest equally, `"uniform"` is plain GRPO.
        min_generations (`int`, *optional*, defaults to `2`):
            Fewest generations of a prompt. At least 2, because a group of one has no advantage.
        max_generations (`int`, *optional*, defaults to `128`):
            Most generations of a prompt.
        look_generations (`int`, *optional*):
            First look at a prompt, at each visit: it gets so many generations, and waits for the rest, which a later
            generation batch holds. 0 for no look. By default 3, but at most half of `num_generations`, under
            `allocation="posterior"`, and 0 under the other rules.
        allocation_window (`int`, *optional*):
            Prompts that share a budget at least. Where a generation batch holds fewer, prompts wait until so many are
            together. 1 shares the rollouts of each batch out within it. By default 64, but at most a quarter of the dataset,
            under `allocation="posterior"`, and 1 under the other rules.
        group_weight_power (`float`, *optional*, defaults to `1.0`):
            How much a prompt weighs in the loss: its number of generations to this power. 1 weighs every rollout the
            same, as TRL's losses do, so that a prompt with four times the rollouts weighs four times; 0 weighs every
            prompt the same.
        token_budget (`str`, *optional*):
            `"uniform"` keeps the rollouts of the prompts that share a budget within the tokens that equal shares would be
            expected to take, by each prompt's mean length so far, under `allocation="posterior"`. By default only the
            number of rollouts is kept to, and hard prompts may make steps longer.
        success_threshold (`float`, *optional*, defaults to `0.5`):
            A completion succeeds if its reward is at least this.
        success_reward_func (`str`, *optional*):
            Name of the reward function whose reward decides success. By default the weighted sum of all, which is the
            reward that GRPO optimises; with several reward functions, naming the one for correctness is better.
        success_prior (`list[float]`, *optional*, defaults to `[1.0, 1.0]`):
            Beta prior of every prompt's success rate: pseudo-counts of successes and failures.
        success_decay (`float`, *optional*, defaults to `0.85`):
            Weight that a prompt's old evidence keeps at each new visit.
        difficulty_columns (`list[str]`, *optional*):
            Dataset columns that say how difficult a prompt is, from which its success rate is predicted before its first
            visit, under `allocation="posterior"`: solve rates of other models (`0.63`, `"5/8"`, `"63 %"`), scores in either
            direction, or categories such as a topic; `"extra_info.level"` for a nested field. What they are worth is learnt
            during the run, and what does not predict counts for nothing.
        prompt_id_column (`str`, *optional*):
            Dataset column that identifies a prompt. By default the content of the row is hashed.
        success_state_path (`str`, *optional*):
            Success rates of another run to begin with: a checkpoint or output folder of [`KnapsackGRPOTrainer`], the
            `knapsack_state.safetensors` in it, a `.csv` table, the `.jsonl` of `trl-knapsack probe` or `evaluate`, or a
            repository of the Hub that has a state (`"owner/name"`). What is known of the prompts spares a run its uniform
            first epoch.
        resume_success_state (`bool`, *optional*, defaults to `True`):
            Whether a resumed run goes on with the success rates in its checkpoint. Set it to `False` to resume from a
            checkpoint that has none, as one of [`~trl.GRPOTrainer`].
        plot_steps (`int`, *optional*, defaults to `0`):
            Show figures of the run so far in TensorBoard, Weights & Biases and trackio every so many steps, and at the
            last. 0 shows none. Needs matplotlib.
    """

    # Defaults of prior and decay: replayed on the drift of real runs, see docs/results.md.
    allocation: str = field(
        default="posterior",
        metadata={
            "help": "How rollouts are shared out over the prompts of a generation batch: 'posterior' maximises the "
            "expected value under each prompt's Beta posterior, 'paper' uses the rates of the last epoch, 'filter' "
            "gives prompts that last succeeded always or never min_generations and shares the rest equally, "
            "'uniform' is plain GRPO.",
            "choices": list(RULES),
        },
    )
    min_generations: int = field(
        default=2,
        metadata={"help": "Fewest generations of a prompt, at least 2."},
    )
    max_generations: int = field(
        default=128,
        metadata={"help": "Most generations of a prompt."},
    )
    look_generations: int | None = field(
        default=None,
        metadata={
            "help": "First look at a prompt, at each visit: it gets so many generations, and waits for the rest, which a "
            "later generation batch holds. 0 for no look. Default: 3, but at most half of num_generations, under "
            "allocation='posterior'; else 0."
        },
    )
    allocation_window: int | None = field(
        default=None,
        metadata={
            "help": "Prompts that share a budget at least. Where a generation batch holds fewer, prompts wait until so "
            "many are together. 1 shares the rollouts of each batch out within it. Default: 64, but at most a quarter of the "
            "dataset, under allocation='posterior'; else 1."
        },
    )
    group_weight_power: float = field(
        default=1.0,
        metadata={
            "help": "A prompt weighs in the loss as its number of generations to this power: 1 weighs every rollout "
            "the same, 0 every prompt."
        },
    )
    token_budget: str | None = field(
        default=None,
        metadata={
            "help": "'uniform' keeps the rollouts of the prompts that share a budget within the tokens that equal shares would "
            "be expected to take, under allocation='posterior'. Default: only the number of rollouts is kept to."
        },
    )
    success_threshold: float = field(
        default=0.5,
        metadata={"help": "A completion succeeds if its reward is at least this."},
    )
    success_reward_func: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function whose reward decides success. Default: the weighted sum of all."
        },
    )
    success_prior: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "Beta prior of every prompt's success rate: pseudo-counts of successes and failures."},
    )
    success_decay: float = field(
        default=0.85,
        metadata={"help": "Weight that a prompt's old evidence keeps at each new visit, in [0, 1]."},
    )
    difficulty_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Dataset columns that say how difficult a prompt is (solve rates, scores, categories), from which its "
            "success rate is predicted before its first visit. What they are worth is learnt during the run."
        },
    )
    prompt_id_column: str | None = field(
        default=None,
        metadata={"help": "Dataset column that identifies a prompt. Default: the content of the row is hashed."},
    )
    success_state_path: str | None = field(
        default=None,
        metadata={
            "help": "Success rates of another run to begin with: a checkpoint or output folder, the "
            "knapsack_state.safetensors in it, a .csv table, the .jsonl of trl-knapsack probe or evaluate, or a repository of "
            "the Hub that has a state (owner/name)."
        },
    )
    resume_success_state: bool = field(
        default=True,
        metadata={
            "help": "Whether a resumed run goes on with the success rates in its checkpoint. Set it to False to resume "
            "from a checkpoint that has none."
        },
    )
    plot_steps: int = field(
        default=0,
        metadata={
            "help": "Show figures of the run so far in TensorBoard, Weights & Biases and trackio every so many steps, and "
            "at the last. 0 shows none. Needs matplotlib."
        },
    )

    def __post_init__(self):
        given = dict(self.__dict__)
        super().__post_init__()
        self._check_knapsack_options()
        # TRL fills fields in from others, and from the machine; what is saved is what the user gave.
        self._as_given = {
            name: (value, copy.deepcopy(self.__dict__[name]))
            for name, value in given.items()
            if not is_personal(name) and self.__dict__[name] is not value
        }

    @classmethod
    def from_grpo_config(cls, args: GRPOConfig) -> "KnapsackGRPOConfig":
        """The same configuration with the knapsack options at their defaults; `args` is not changed."""
        config: Any = copy.copy(args)
        config.__class__ = cls
        config._as_given = {"generation_batch_size": (None, args.generation_batch_size)}  # else TRL refuses both
        for option in fields(cls):
            if option.name not in args.__dict__:
                make: Any = option.default_factory  # there is one where there is no default
                setattr(config, option.name, make() if option.default is MISSING else option.default)
        config._check_knapsack_options()
        return config

    def _check_knapsack_options(self) -> None:
        if self.allocation not in RULES:
            raise InvalidInputError(f"allocation {self.allocation!r} must be one of {', '.join(map(repr, RULES))}.")
        if self.min_generations < 2:
            raise InvalidInputError(
                f"min_generations ({self.min_generations}) must be at least 2, because a group of one has no advantage."
            )
        if self.min_generations > self.num_generations:
            raise InvalidInputError(
                f"min_generations ({self.min_generations}) must be at most num_generations ({self.num_generations}), "
                "the mean; lower it or raise num_generations."
            )
        if self.max_generations < self.num_generations:
            raise InvalidInputError(
                f"max_generations ({self.max_generations}) must be at least num_generations ({self.num_generations}), "
                "the mean; raise it or lower num_generations."
            )
        if self.look_generations not in (None, 0) and not 2 <= self.look_generations < self.num_generations:
            raise InvalidInputError(
                f"look_generations ({self.look_generations}) must be 0 or lie between 2 and num_generations - 1 "
                f"({self.num_generations - 1}), because a look has to leave something to decide; set it to 0 for none."
            )
        if self.allocation_window is not None and self.allocation_window < 1:
            raise InvalidInputError(
                f"allocation_window ({self.allocation_window}) must be at least 1; 1 decides each generation batch alone."
            )
        if not 0 <= self.group_weight_power <= 1:
            raise InvalidInputError(
                f"group_weight_power ({self.group_weight_power}) must lie between 0, every prompt weighs the same, and 1, "
                "every rollout does."
            )
        PosteriorRule(token_budget=self.token_budget)  # says what is wrong with it
        if self.token_budget is not None and self.allocation != "posterior":
            raise InvalidInputError(
                f"token_budget ({self.token_budget!r}) needs allocation='posterior', not {self.allocation!r}, whose counts do "
                "not go by tokens; leave it out."
            )
        check_success_threshold(self.success_threshold)
        if self.plot_steps < 0:
            raise InvalidInputError(f"plot_steps ({self.plot_steps}) must not be negative; set 0 for no plots.")
        SuccessRateTracker(self.success_prior, self.success_decay)  # says what is wrong with either
        if self.difficulty_columns is not None:
            check_columns(self.difficulty_columns)
