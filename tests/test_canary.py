"""
The seams in TRL and transformers, read in the source that is installed: what must be so in each, for any version; and for a
version that nobody has read yet, which of them differ from the last one that was.

    python tests/test_canary.py     # prints the digests of the installed version, for READ below
"""

import ast
import functools
import hashlib
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable

import pytest
import transformers
import trl
from packaging.version import Version

from trl_knapsack.training.seams import METHODS


GRPO, SAMPLER, TRAINER = "trl.GRPOTrainer", "trl.trainer.utils.RepeatSampler", "transformers.Trainer"
JIT = "transformers.trainer_jit_checkpoint.JITCheckpointCallback"


def find(path: str):
    """The class, method or function of a dotted path."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        return functools.reduce(getattr, parts[length:], found)
    raise ImportError(path)


class Source:
    """What stands in a method or function, without comments, docstrings and annotations."""

    def __init__(self, path: str):
        self.path, self.function = path, inspect.unwrap(find(path))
        self.tree = ast.parse(textwrap.dedent(inspect.getsource(self.function)))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                node.returns = None
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:]
            elif isinstance(node, ast.arg):
                node.annotation = None

    @property
    def where(self) -> str:
        return f"{inspect.getsourcefile(self.function)}:{inspect.getsourcelines(self.function)[1]}"

    @property
    def code(self) -> str:
        return ast.unparse(self.tree)

    def calls(self) -> list[str]:
        """Names of what is called, in the order of the lines: `self.log`, `torch.randperm`."""
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        return [ast.unparse(call.func) for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset))]

    def comes_before(self, *names: str) -> bool:
        """Whether each of them is called, one after the other."""
        calls = self.calls()
        return all(name in calls for name in names) and sorted(names, key=calls.index) == list(names)

    def digest(self) -> str:
        """The same in every Python: an empty field is left out, as newer ones have more of them."""

        def plain(node):
            if isinstance(node, ast.AST):
                return [type(node).__name__, *((n, plain(v)) for n, v in ast.iter_fields(node) if v not in (None, []))]
            return [plain(item) for item in node] if isinstance(node, list) else repr(node)

        return hashlib.blake2b(json.dumps(plain(self.tree)).encode(), digest_size=6).hexdigest()


# Seam, what trl_knapsack takes for granted there, and whether it is so.
PROPERTIES: list[tuple[str, str, Callable[[Source], bool]]] = [
    (
        f"{GRPO}._prepare_inputs",
        "a window is generated when `_step` has passed `steps_per_generation * num_iterations` steps, or nothing is "
        "buffered: a resumed run goes on in it by setting both",
        lambda s: (
            "generate_every = self.args.steps_per_generation * self.num_iterations" in s.code
            and "self._step % generate_every == 0 or self._buffered_inputs is None" in s.code
            and "self._buffered_inputs[self._step % self.args.steps_per_generation]" in s.code
        ),
    ),
    (
        f"{GRPO}._generate_and_score_completions",
        "it generates, then computes the rewards, once each: both are overridden",
        lambda s: (
            s.comes_before("self._generate", "self._calculate_rewards")
            and s.calls().count("self._generate") == s.calls().count("self._calculate_rewards") == 1
        ),
    ),
    (
        f"{GRPO}._generate_and_score_completions",
        "groups are rows of `num_generations`, and normalised so: their advantages are replaced",
        lambda s: ".view(-1, num_generations" in s.code and "nanstd(" in s.code and "+ 0.0001)" in s.code,
    ),
    (
        f"{GRPO}._generate_and_score_completions",
        "advantages are in the output, and logged once for all ranks: both are replaced",
        lambda s: (
            "'advantages': advantages" in s.code and s.calls().count("self._logs['advantages'].extend") == 1
        ),
    ),
    (
        f"{GRPO}._generate_and_score_completions",
        "`frac_reward_zero_std` is appended once: its last value is replaced",
        lambda s: s.calls().count("self._metrics[mode]['frac_reward_zero_std'].append") == 1,
    ),
    (
        f"{GRPO}._calculate_rewards",
        "it returns the rewards of all ranks",
        lambda s: "rewards_per_func = gather(rewards_per_func)\n    return rewards_per_func" in s.code,
    ),
    (
        f"{GRPO}._get_train_sampler",
        "it returns a plain RepeatSampler, which repeats each prompt `num_generations` times",
        lambda s: (
            "return RepeatSampler(" in s.code and "mini_repeat_count=self.num_generations" in s.code
        ),
    ),
    (
        f"{SAMPLER}.__iter__",
        "an epoch draws one permutation, and nothing else, from the sampler's generator: a resumed run draws those of "
        "the epochs before",
        lambda s: (
            s.code.count("generator") == 2 and "torch.randperm(self.num_samples, generator=self.generator)" in s.code
        ),
    ),
    (
        f"{GRPO}.log",
        "the metrics of `_metrics[mode]` are averaged and cleared: the smallest and largest budgets are reduced before",
        lambda s: "self._metrics[mode].items()" in s.code and "self._metrics[mode].clear" in s.calls(),
    ),
    (
        f"{GRPO}._log_completion_extra",
        "it takes a column and its values, one for each row",
        lambda s: "[column].extend(values)" in s.code,
    ),
    (
        f"{GRPO}._save_checkpoint",
        "it leaves the checkpoint to transformers",
        lambda s: "super()._save_checkpoint" in s.calls(),
    ),
    (
        f"{TRAINER}._save_checkpoint",
        "the model comes first, then the random states, then trainer_state.json, and deleting older checkpoints last: "
        "a kill leaves a whole one",
        lambda s: s.comes_before(
            "self.save_model", "self._save_rng_state", "self.state.save_to_json", "rotate_checkpoints"
        ),
    ),
    (
        f"{TRAINER}._run_epoch",
        "the random states of a checkpoint are loaded before its first step",
        lambda s: s.comes_before("self._load_rng_state", "self.callback_handler.on_step_begin"),
    ),
    (
        f"{JIT}.on_pre_optimizer_step",
        "a checkpoint on SIGTERM is made within a step, too",
        lambda s: "self.jit_manager.execute_jit_checkpoint" in s.calls(),
    ),
]  # fmt: skip

# Read, understood and tested with these versions. Of others, what differs is to be read before they are said to work.
READ = {
    "trl": "1.16.0",
    "transformers": "5.23.0",
    "transformers.Trainer._run_epoch": "bb77bcb7acb6",
    "transformers.Trainer._save_checkpoint": "ed5ffe7caa50",
    "transformers.trainer_jit_checkpoint.JITCheckpointCallback.on_pre_optimizer_step": "76972ca29d28",
    "trl.GRPOTrainer._calculate_rewards": "63f900adfe11",
    "trl.GRPOTrainer._generate": "6aeb6f31bb6d",
    "trl.GRPOTrainer._generate_and_score_completions": "a20682d9878b",
    "trl.GRPOTrainer._get_output_dir": "9b2a87957d6b",
    "trl.GRPOTrainer._get_train_sampler": "0b691c960fec",
    "trl.GRPOTrainer._hp_search_setup": "1cd3bf52d18b",
    "trl.GRPOTrainer._load_optimizer_and_scheduler": "5e81b66e79fa",
    "trl.GRPOTrainer._load_rng_state": "31c1a8523c43",
    "trl.GRPOTrainer._log_completion_extra": "3d0d6b6219de",
    "trl.GRPOTrainer._prepare_inputs": "e1f525ff2348",
    "trl.GRPOTrainer._save_checkpoint": "80a1a021a9e2",
    "trl.GRPOTrainer._save_rng_state": "8571a3132e8a",
    "trl.GRPOTrainer._set_signature_columns_if_needed": "a003a5b9b31a",
    "trl.GRPOTrainer.create_model_card": "f24f6b59a743",
    "trl.GRPOTrainer.log": "c273265c8611",
    "trl.GRPOTrainer.train": "ee2f395f22c2",
    "trl.trainer.utils.RepeatSampler.__iter__": "921733ebdd92",
}

SEAMS = sorted({f"{GRPO}.{name}" for name in METHODS} | {seam for seam, *_ in PROPERTIES})


@pytest.mark.parametrize(("seam", "promise", "holds"), PROPERTIES)
def test_what_is_relied_upon_is_so(seam, promise, holds):
    source = Source(seam)
    assert holds(source), (
        f"{seam} has moved in trl {trl.__version__} with transformers {transformers.__version__}. trl_knapsack takes for "
        f"granted: {promise}. Read {source.where}, then what trl_knapsack/training does there (docs/design.md, The seams)."
    )


def digests() -> dict[str, str]:
    return {"trl": trl.__version__, "transformers": transformers.__version__} | {
        seam: Source(seam).digest() for seam in SEAMS
    }


def test_every_seam_was_read():
    """A newer TRL or transformers may work all the same; this says what of it nobody has looked at."""
    now = digests()
    if any(Version(now[name]) < Version(READ[name]) for name in ("trl", "transformers")):
        pytest.skip(f"trl {now['trl']} with transformers {now['transformers']} is older than what was read")
    moved = [f"{seam} ({Source(seam).where})" for seam in SEAMS if now[seam] != READ.get(seam)]
    assert not moved, (
        f"Other code in trl {now['trl']} with transformers {now['transformers']} than in {READ['trl']} with "
        f"{READ['transformers']}; read it, and put what `python tests/test_canary.py` prints into this file: "
        + "; ".join(moved)
    )


@pytest.mark.parametrize(
    ("seam", "before", "after"),
    [
        (f"{GRPO}._calculate_rewards", "rewards_per_func = gather(rewards_per_func)", "pass"),
        (f"{SAMPLER}.__iter__", "torch.randperm(self.num_samples,", "torch.randperm(2 * self.num_samples,"),
        (f"{GRPO}._generate_and_score_completions", "self._generate(", "self._new_generate("),
        (f"{TRAINER}._save_checkpoint", "rotate_checkpoints(", "rotate("),
    ],
)
def test_the_canary_would_sing(seam, before, after, monkeypatch):
    theirs = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda f: theirs(f).replace(before, after))
    with pytest.raises(AssertionError, match=f"{seam.rsplit('.', 1)[1]} has moved in trl .* Read .*py:[0-9]+"):
        for name, promise, holds in PROPERTIES:
            if name == seam:
                test_what_is_relied_upon_is_so(name, promise, holds)
    with pytest.raises(AssertionError, match=f"Other code in trl .*{seam.rsplit('.', 1)[1]} ."):
        test_every_seam_was_read()


if __name__ == "__main__":
    print("READ = " + json.dumps(digests(), indent=4))
