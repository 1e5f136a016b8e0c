"""What this package relies on in TRL's asynchronous trainer, and the error for a TRL whose code there is another."""

import hashlib
import inspect
from collections.abc import Mapping
from types import ModuleType

import trl

from ..errors import MissingDependencyError


WORKING_TRL = "trl==1.16.*"

# The code that was read, and a digest of it: the module is private and changes often, and where it changes groups may be
# mixed up without any error. After reading what changed, `digest` gives the new ones.
DIGESTS = {
    "_AsyncRolloutLoop._generate_loop": "50830468c03c",  # takes rollouts from the iterator; hands over finished groups
    "_AsyncRolloutLoop._repeat_iterator": "cc00aa70f2c4",  # numbers the prompts
    "_AsyncRolloutLoop._score_loop": "7f81ffdf1f49",  # passes on whatever rows `_score_group` returns
    "_AsyncRolloutLoop._score_group": "e7f6c1d40c2b",  # rewards, advantages, rows
    "_AsyncRolloutLoop._push_metrics": "56258a68ad23",
    "AsyncRolloutWorker.__init__": "408830a852ae",  # forwards its arguments to the loop
    "AsyncRolloutWorker.start": "a1e7f3186bb6",  # hands `_loop_cls` to the child
    "_child_main": "fb506c890381",  # calls it
    "RolloutGroup": "8499209cac27",
    "RolloutSample": "d143210cd36b",
    "TrainingSequence": "1d58b12390ef",
}


def digest(code: object) -> str:
    """Digest of the source of a function or class, but for comments of whole lines, indentation and empty lines."""
    lines = (line.strip() for line in inspect.getsource(code).splitlines())  # type: ignore[arg-type]
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_async_seams(module: ModuleType, digests: Mapping[str, str] = DIGESTS) -> None:
    """
    Refuse a TRL whose asynchronous rollout loop is another than the one that was read.

    Args:
        module (`module`): `trl.experimental.async_grpo.async_rollout_worker`.
        digests (`Mapping[str, str]`, *optional*): What is relied on, by its name in the module, and its [`digest`].

    Raises:
        `ImportError`: naming what is another, and the versions that work.
    """
    for name, expected in digests.items():
        code: object = module
        for part in name.split("."):
            code = getattr(code, part, None)
        if code is None or digest(code) != expected:
            raise MissingDependencyError(
                f"trl {trl.__version__} has another {name} in {module.__name__} than KnapsackRolloutWorker was written for; "
                f"install a TRL that works: {WORKING_TRL}."
            )
