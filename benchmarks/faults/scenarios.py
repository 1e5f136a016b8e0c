"""What goes wrong, one function each: it makes it happen, and yields what came of it."""

import contextlib
import ctypes
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import loopback_hub
import numpy as np
import pytest
import torch
from processes import Kill, Lab, Leg, checkpoints, fork
from training import LIMITS, OWN_SETTINGS, SETTINGS, STEPS, Task, growth, own_memory
from trl import ModelConfig, ScriptArguments

from trl_knapsack import KnapsackGRPOConfig, SuccessRateTracker, get_rule
from trl_knapsack.allocation import Allocation
from trl_knapsack.tracking import STATE_FILE, RolloutHistory, RolloutRecord
from trl_knapsack.tracking.history import HistoryWriter
from trl_knapsack.tracking.state_file import FIELDS, write_state
from trl_knapsack.training.checkpoints import load_window
from trl_knapsack.training.plan import plan_rollouts


# How a test ended. Those in capitals are not well.
EQUAL = "equal"  # bit for bit the undisturbed run
ENDED = "ended"  # by itself and in time, as it should
REFUSED = "refused"  # with a sentence of this package that says what to do
THEIRS = "raised"  # the error of the reward function, the disk, or of transformers, as it came
DIFFERENT = "DIFFERENT"  # ended, silently with another result
ERROR = "ERROR"  # with an error that is not a sentence
LATE = "HUNG"  # had to be ended
TOLD = "told"  # ended with another result, and a warning said that it would
WELL = (EQUAL, ENDED, REFUSED, THEIRS, TOLD)


@dataclass
class Outcome:
    """What came of one test: `verdict` is one of the words above, `detail` says more where it is not `EQUAL`."""

    scenario: str
    trainer: str
    case: str
    verdict: str
    detail: str = ""
    kills: int = 0
    starts: int = 1
    begun_anew: int = 0
    checks: int = 1  # comparisons in it, where there are many
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        return self.verdict in WELL

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class References:
    """Undisturbed runs, one for each combination of trainer, processes and settings, made when asked for."""

    def __init__(self, lab: Lab):
        self.lab, self._known = lab, {}

    def __call__(self, trainer: str, processes: int, changes: dict[str, Any]) -> Leg:
        key = (trainer, processes, repr(sorted(changes.items())))
        if key not in self._known:
            folder = f"reference-{len(self._known)}"
            leg = self.lab.run(self.lab.task(trainer, folder, changes), processes)
            if any(answer is None or "ended" not in answer for answer in leg.answers):
                raise RuntimeError(f"The undisturbed run {key} did not end: {leg.answers}, {leg.statuses}.")
            self._known[key] = leg
        return self._known[key]


def options(settings: str, limits: str, **others) -> dict[str, Any]:
    return (
        {"save_strategy": "steps", "save_steps": 3, "ddp_timeout": 60}
        | (SETTINGS | OWN_SETTINGS)[settings]
        | LIMITS[limits]
        | others
    )


def compared(leg: Leg, reference: Leg) -> tuple[str, str]:
    """Verdict and detail of a run that ended, against the undisturbed one."""
    for rank, (mine, theirs) in enumerate(zip(leg.answers, reference.answers, strict=True)):
        different = [name for name, value in theirs["ended"].items() if mine["ended"].get(name) != value]
        if different:
            return DIFFERENT, f"{', '.join(different)} on rank {rank}; at step {mine['ended']['step']}"
    return EQUAL, ""


def has_ended(leg: Leg) -> bool:
    return all(answer is not None and "ended" in answer for answer in leg.answers)


def newest(folder: Path) -> Path | None:
    return max((folder / name for name in checkpoints(folder)), key=lambda p: int(p.name.split("-")[1]), default=None)


# ------------------------------------------------------------------------------------------------ kill and resume


def draw_kill(rng: random.Random, duration: float, how: str, processes: int) -> Kill | int:
    """A moment to kill a run: any, or while a checkpoint is written; an `int` is the place of a change to its files."""
    only = (rng.randrange(processes),) if processes > 1 and rng.random() < 0.3 else None
    moment = rng.random()
    if moment < 0.4:
        return Kill(how, rng.uniform(0.2, duration), ranks=only)
    if moment < 0.75 or how != "SIGKILL":
        return Kill(how, rng.uniform(0, 0.12), saving=rng.randint(1, 4), ranks=only)
    return rng.randint(1, 90)


def killed_scenario(processes: int, jit: bool) -> str:
    return (
        "killed, a checkpoint on SIGTERM" if jit else f"killed, {'one process' if processes == 1 else 'two processes'}"
    )


def kill_and_resume(
    lab: Lab,
    references: References,
    rng: random.Random,
    trainer: str,
    processes: int,
    settings: str,
    limits: str,
    how: str,
    kills: int,
    jit: bool = False,
) -> Outcome:
    """
    A run that is killed `kills` times at random moments and each time gone on with by `resume_from_checkpoint=True`, as a
    job that a cluster starts again does; then it may end. Where it says that there is nothing to go on with, it begins anew.
    """
    changes = options(settings, limits) | ({"enable_jit_checkpoint": True} if jit else {})
    if how == "SIGTERM" and jit and processes > 1:
        changes["ddp_timeout"] = 15
    reference = references(trainer, processes, options(settings, limits))
    name = f"kill-{lab.starts}"
    case = f"{processes} process{'es' * (processes > 1)}, {how}{' with a checkpoint' * jit}, {settings}, {limits}"
    outcome = Outcome(killed_scenario(processes, jit), trainer, case, EQUAL, starts=0)
    begin, folder, planned = time.monotonic(), lab.folder / name, kills
    while outcome.starts < 3 * kills + 6:
        task = lab.task(trainer, name, changes, resume=bool(checkpoints(folder)))
        plan = draw_kill(rng, reference.seconds, how, processes) if planned > 0 else None
        on_rank = {}
        if isinstance(plan, int):
            on_rank, plan = {rng.randrange(processes): {"die_at_event": plan}}, None
        outcome.starts += 1
        leg = lab.run(task, processes, plan, on_rank, orphans=20)
        if leg.is_late:
            outcome.verdict, outcome.detail = LATE, f"start {outcome.starts}: {leg.statuses}"
            break
        if leg.is_killed or has_ended(leg) and leg.answers[0]["ended"]["step"] < STEPS:
            outcome.kills += 1
            planned -= 1
        elif has_ended(leg):
            outcome.verdict, outcome.detail = compared(leg, reference)
            break
        else:
            said, is_a_sentence = leg.error()
            outcome.detail = said[:300]
            outcome.begun_anew += 1
            if is_a_sentence and "begin anew" in said:
                shutil.rmtree(folder)
            elif trainer == "grpo" and task.resume:
                shutil.rmtree(newest(folder))  # what its user would try
            else:
                outcome.verdict = ERROR
                break
    else:
        outcome.verdict, outcome.detail = ERROR, f"no end after {outcome.starts} starts"
    if outcome.verdict == EQUAL and outcome.begun_anew:
        outcome.detail = f"{'refused' if trainer == 'knapsack' else 'failed'} {outcome.begun_anew} times"
    outcome.seconds = time.monotonic() - begin
    if outcome.is_well:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


# --------------------------------------------------------------------------------------------------- cut checkpoints


def cut_checkpoints(
    lab: Lab, references: References, rng: random.Random, trainer: str, processes: int, cases: int | None
) -> Iterator[Outcome]:
    """
    The newest checkpoint as a crash leaves it after each of its files, and in the middle of it; the one before is whole.
    `cases` are drawn, or all of them are tried.
    """
    changes = options("windows", "two kept")
    reference = references(trainer, processes, changes)
    # A whole run, stopped in the second epoch and within a window
    base = lab.folder / f"cut-{lab.starts}"
    leg = lab.run(
        lab.task(trainer, base.name, changes), processes, on_rank={0: {"bad_reward": "dies", "bad_from": 6}}, orphans=2
    )
    last = newest(base)
    assert last is not None and len(checkpoints(base)) == 2 and not has_ended(leg), leg.statuses
    files = sorted((p for p in last.iterdir() if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    stages = [(place, is_half) for place in range(len(files)) for is_half in (False, True)]
    for place, is_half in stages if cases is None else rng.sample(stages, min(cases, len(stages))):
        folder = lab.folder / f"cut-{lab.starts}"
        shutil.copytree(base, folder)
        for later in files[place + is_half :]:
            (folder / last.name / later.name).unlink()
        if is_half:
            file = folder / last.name / files[place].name
            os.truncate(file, file.stat().st_size // 2)
        what = f"{'half of ' * is_half}{files[place].name} {'written' if is_half else 'not begun'}"
        task = lab.task(trainer, folder.name, changes, resume=True)
        yield _resumed(lab, task, processes, reference, "cut checkpoint", f"{processes} processes, {what}")
    shutil.rmtree(base)


def rank_killed_before_its_random_state(lab: Lab, references: References, trainer: str) -> Outcome:
    """Rank 0 is ready with the checkpoint, and may delete the one before; rank 1 is killed before it is."""
    changes = options("windows", "one kept")
    reference = references(trainer, 2, changes)
    folder = f"rng-{lab.starts}"
    lab.run(lab.task(trainer, folder, changes), 2, on_rank={1: {"bad_reward": "dies", "bad_from": 3}}, orphans=3)
    lab.run(lab.task(trainer, folder, changes, resume=True), 2, on_rank={1: {"dies_before_rng": True}}, orphans=3)
    task = lab.task(trainer, folder, changes, resume=True)
    return _resumed(lab, task, 2, reference, "cut checkpoint", "rank 1 killed before its random state")


def lost_files(
    lab: Lab, references: References, rng: random.Random, trainer: str, cases: int | None
) -> Iterator[Outcome]:
    """One file of a checkpoint that was whole is lost or emptied: not what a kill leaves, but a power cut or a copy."""
    changes = options("windows", "two kept")
    reference = references(trainer, 1, changes)
    base = lab.folder / f"lost-{lab.starts}"
    lab.run(lab.task(trainer, base.name, changes), on_rank={0: {"bad_reward": "dies", "bad_from": 6}})
    last = newest(base)
    files = sorted(p.name for p in last.iterdir() if p.is_file())
    losses = [(name, emptied) for name in files for emptied in (False, True)]
    for name, emptied in losses if cases is None else rng.sample(losses, cases):
        folder = lab.folder / f"lost-{lab.starts}"
        shutil.copytree(base, folder)
        if emptied:
            os.truncate(folder / last.name / name, 0)
        else:
            (folder / last.name / name).unlink()
        task = lab.task(trainer, folder.name, changes, resume=True)
        what = f"{name} {'empty' if emptied else 'lost'}"
        outcome = _resumed(lab, task, 1, reference, "lost file", what, theirs_is_well=True)
        yield outcome
    shutil.rmtree(base)


def _resumed(
    lab: Lab, task: Task, processes: int, reference: Leg, scenario: str, case: str, theirs_is_well: bool = False
) -> Outcome:
    leg = lab.run(task, processes, orphans=20)
    outcome = Outcome(scenario, task.trainer, case, LATE, seconds=leg.seconds)
    if has_ended(leg):
        outcome.verdict, outcome.detail = compared(leg, reference)
        if outcome.verdict == DIFFERENT and "does not go on exactly" in leg.said:
            outcome.verdict = TOLD
    elif not leg.is_late and leg.error() is not None:
        outcome.detail, is_a_sentence = leg.error()
        outcome.verdict = REFUSED if is_a_sentence else THEIRS if theirs_is_well else ERROR
    outcome.detail = outcome.detail[:300].replace(str(lab.folder), "...")
    if outcome.is_well:
        shutil.rmtree(task.folder, ignore_errors=True)
    return outcome


# ---------------------------------------------------------------------------------------- damaged states and windows


def damaged_files(lab: Lab, references: References, rng: random.Random, damages: int) -> Iterator[Outcome]:
    """Random bits flipped, pieces cut out, lengths cut: refused with a sentence that names the file, or the same content."""
    base = lab.folder / f"damaged-{lab.starts}"
    changes = options("windows", "two kept")
    lab.run(lab.task("knapsack", base.name, changes), on_rank={0: {"bad_reward": "dies", "bad_from": 6}})
    for name, load in ((STATE_FILE, _load_state), ("knapsack_window_0.safetensors", _load_window)):
        file, seed = newest(base) / name, rng.randrange(2**32)
        yield _in_a_child(lab, "damaged file", name, damages, lambda f=file, r=load, s=seed: _damage(f, r, damages, s))
    shutil.rmtree(base)


def _in_a_child(lab: Lab, scenario: str, what: str, checks: int, wrong: Callable[[], list[str]]) -> Outcome:
    """
    `checks` attempts in a process of its own, should one of them end the process.

    Args:
        wrong (`Callable[[], list[str]]`): Makes them, and returns a sentence for each that did not end well.
    """
    begin = time.monotonic()
    leg = _child(lab, wrong)
    found = leg.answers[0]
    if found is None:
        said = f"the process {'hung' if leg.is_late else 'ended'}, with status {leg.statuses[0]}"
    else:
        said = f"{len(found)} of {checks}: {'; '.join(found[:3])}" if found else ""
    return Outcome(
        scenario,
        "knapsack",
        f"{what}, {checks} times",
        ERROR if said else REFUSED,
        said[:400].replace(str(lab.folder), "..."),
        checks=checks,
        seconds=time.monotonic() - begin,
    )


def _child(lab: Lab, body: Callable[[], Any], limit: float = 900.0) -> Leg:
    """What `body` returns, as JSON can hold it, from a process of its own: the only answer of the leg."""
    begin, answer = time.monotonic(), lab.folder / f"child-{lab.starts}.json"
    lab.starts += 1

    def write() -> int:
        answer.write_text(json.dumps(body()))
        return 0

    return lab.wait([(fork(write), answer)], begin, lab.folder, None, limit)


def _load_state(path: Path) -> list:
    tracker = SuccessRateTracker()
    tracker.load(path)
    return [(name, np.asarray(values).tobytes()) for name, values in sorted(tracker.state_dict().items())]


def _load_window(path: Path) -> list:
    about = dict(num_processes=1, num_iterations=1) | SETTINGS["windows"]
    step, batches = load_window(str(path), about, torch.device("cpu"))
    return [step, *(repr([(k, v.tolist() if torch.is_tensor(v) else v) for k, v in b.items()]) for b in batches)]


def _damage(file: Path, load: Callable[[Path], list], damages: int, seed: int) -> list[str]:
    rng, whole, right = random.Random(seed), file.read_bytes(), load(file)
    copy = file.with_name("damaged-" + file.name)
    wrong = []
    for _ in range(damages):
        content, at, how = bytearray(whole), rng.randrange(len(whole)), rng.random()
        if how < 0.6:
            content[at] ^= 1 << rng.randrange(8)
        elif how < 0.75:
            del content[at:]
        elif how < 0.9:
            content[at : at + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
        else:
            content[at : at + 512] = bytes(len(content[at : at + 512]))  # a block that never reached the disk
        copy.write_bytes(content)
        try:
            if load(copy) != right:
                wrong.append(f"{how:.2f} at {at}: accepted with another content")
        except ValueError as error:
            if copy.name not in str(error):
                wrong.append(f"{how:.2f} at {at}: {type(error).__name__}, which does not name the file: {error}")
        except BaseException as error:
            wrong.append(f"{how:.2f} at {at}: {type(error).__name__}: {error}")
    return wrong


# ------------------------------------------------------------------------------------------------ what strangers wrote


def hostile_files(lab: Lab, rng: random.Random, states: int, configs: int) -> Iterator[Outcome]:
    """Success rates and configurations that somebody wrote to do harm: sound files, whose content is not."""
    folder, seeds = lab.folder / f"hostile-{lab.starts}", (rng.randrange(2**32), rng.randrange(2**32))
    folder.mkdir()
    yield _in_a_child(lab, "hostile file", "success rates", states, lambda: _hostile_states(folder, states, seeds[0]))
    yield _in_a_child(
        lab, "hostile file", "configuration", configs, lambda: _hostile_configs(folder, configs, seeds[1])
    )


_NUMBERS = (
    0.0,
    1.0,
    0.5,
    -1.0,
    1e11,
    1.1e11,
    1e12,
    1e308,
    5e-324,
    -0.0,
    float("nan"),
    float("inf"),
    float("-inf"),
    55.0,
)


def _hostile_states(folder: Path, states: int, seed: int) -> list[str]:
    """Files with a right digest over wrong numbers: refused, or every rule can allocate with them."""
    rng, path, wrong = random.Random(seed), folder / STATE_FILE, []
    rules = [get_rule(name) for name in ("posterior", "paper", "filter", "uniform")]
    for _ in range(states):
        prompts = rng.randint(1, 6)
        keys = [rng.choice(["a", "b\x1b[31m", "", "\ud83d", "=1+1", "k" * 99, f"{n}"]) for n in range(prompts)]
        arrays = {
            name: np.array([rng.choice(_NUMBERS) if rng.random() < 0.2 else 1.0 for _ in keys]).astype(dtype)
            for name, dtype in FIELDS.items()
        }
        write_state(path, keys, arrays)
        tracker = SuccessRateTracker()
        try:
            tracker.load(path)
        except ValueError as error:
            if path.name not in str(error) or "\n" in str(error) or "\x1b" in str(error):
                wrong.append(f"{error!r}")
            continue
        except BaseException as error:
            wrong.append(f"{type(error).__name__}: {error}")
            continue
        try:
            for rule in rules:
                counts = rule(tracker.evidence(keys), 8 * prompts, 2, 64).counts
                if sum(counts) != 8 * prompts:
                    wrong.append(f"counts {counts} with {arrays}")
            tracker.observe(keys, [1.0] * prompts, [2.0] * prompts)
        except BaseException as error:
            wrong.append(f"accepted, then {type(error).__name__}: {error}")
    return wrong


# What a configuration from the Hub must leave as it is by default: it concerns the machine, its files and its accounts.
_UNTOUCHED = (
    *("output_dir", "report_to", "run_name", "push_to_hub", "hub_token", "hub_model_id", "deepspeed", "fsdp"),
    *("resume_from_checkpoint", "trust_remote_code", "dataloader_num_workers", "save_total_limit", "save_steps"),
    *("torch_compile_backend", "vllm_server_base_url", "logging_dir", "log_completions_hub_repo", "ddp_backend"),
)
_VALUES = (
    *("os.system", "them/code", "/etc/passwd", "../../x", "$(touch {touched})", "`touch {touched}`", "true", "null"),
    *(
        "-1",
        "0",
        "1",
        "2",
        "1e400",
        "-.inf",
        ".nan",
        "9" * 40,
        "9" * 5000,
        "0x7fffffffffffffff",
        "[]",
        "{{}}",
        "''",
        "[[[]]]",
    ),
    *('"\\e]0;x\\a"', '"\\0"', "[os.system]", "{{trust_remote_code: true}}", "{{a: {{custom_generate: them/code}}}}"),
    *(
        "!!python/object/apply:os.system ['touch {touched}']",
        "!!python/name:os.system ''",
        "!!binary aGk=",
        "!!set {{a}}",
    ),
    *(
        "!!python/object/new:subprocess.Popen [[touch, '{touched}']]",
        "2001-12-14",
        "&a [*a]",
        "[" * 3000,
        "- - - a",
        "? x",
    ),
)


def _hostile_configs(folder: Path, configs: int, seed: int) -> list[str]:
    """
    Configurations of a stranger, from a Hub or a file: refused, or read without anything being executed, and without
    touching what is the user's.
    """
    rng, touched, wrong = random.Random(seed), folder / "touched", []
    names = [f.name for t in (KnapsackGRPOConfig, ScriptArguments, ModelConfig) for f in fields(t)]
    executed = []
    sys.addaudithook(
        lambda event, what: (
            executed.append((event, what))
            if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
            else None
        )
    )
    plain = KnapsackGRPOConfig(str(folder), use_cpu=True, bf16=False)
    with pytest.MonkeyPatch.context() as patch, loopback_hub.LoopbackHub() as hub:
        loopback_hub.connect(hub, patch, str(folder / "cache"))
        for number in range(configs):
            lines = [
                f"{rng.choice(names)}: {rng.choice(_VALUES).format(touched=touched)}" for _ in range(rng.randint(1, 2))
            ]
            content = rng.choice(lines[0][:1]) + rng.choice(_VALUES) if rng.random() < 0.05 else "\n".join(lines)
            from_hub = rng.random() < 0.5
            if from_hub:
                name = f"them/config{number}"
                hub.put(name, knapsack_config__yaml=content)
            else:
                name = str(folder / "theirs.yaml")
                Path(name).write_text(content)
            try:
                config = KnapsackGRPOConfig.from_pretrained(name, output_dir=str(folder), use_cpu=True, bf16=False)
            except (ValueError, OSError, ImportError) as error:
                if "\x1b" in str(error):
                    wrong.append(f"{content!r}: an escape in the error")
            except BaseException as error:
                wrong.append(f"{content[:200]!r}: {type(error).__name__}: {str(error)[:200]}")
            else:
                differs = [name for name in _UNTOUCHED if getattr(config, name, None) != getattr(plain, name, None)]
                if from_hub and differs:
                    wrong.append(f"{content[:200]!r} set {differs}")
            if executed or touched.exists():
                wrong.append(f"{content[:200]!r} executed {executed}")
                executed.clear()
                touched.unlink(missing_ok=True)
    return wrong


# ---------------------------------------------------------------------------------------------------- ranks, rewards


def astray_ranks(lab: Lab, trainer: str, kinds: tuple[str, ...] = ("raises", "dies", "hangs")) -> Iterator[Outcome]:
    """Rank 1 raises, dies or hangs in its reward function. Rank 0 has to end as well: that ends the job under `torchrun`."""
    for kind in kinds:
        limit = 10
        task = lab.task(trainer, f"rank-{lab.starts}", options("windows", "two kept", ddp_timeout=limit))
        begin = time.monotonic()
        ranks = lab.start(task, 2, {1: {"bad_reward": kind, "bad_from": 4}})
        # Rank 0 alone is waited for; rank 1 is ended as soon as rank 0 has.
        first = lab.wait(ranks[:1], begin, Path(task.folder), None, limit=limit + 30)
        second = lab.wait(ranks[1:], time.monotonic(), Path(task.folder), Kill("SIGKILL", 0.0), limit=5)
        said = first.error() or ("", False)
        case = f"rank 1 {kind}{f', ddp_timeout {limit} s' * (kind == 'hangs')}"
        verdict = LATE if first.is_late else DIFFERENT if has_ended(first) else ENDED
        detail = (
            f"rank 0 after {first.seconds:.0f} s: {said[0][:120]}; rank 1: {(second.error() or ('killed',))[0][:100]}"
        )
        yield Outcome("rank astray", trainer, case, verdict, detail, seconds=time.monotonic() - begin)


def bad_rewards(lab: Lab, references: References, trainer: str, kinds: list[str]) -> Iterator[Outcome]:
    """
    From its fifth call on the reward function returns what it should not. The run goes on with a finite tracker, or stops
    with the function's own error, or TRL's on what it returned.
    """
    for kind in kinds:
        changes = options("accumulation", "two kept", save_strategy="no")
        task = lab.task(trainer, f"reward-{lab.starts}", changes, bad_reward=kind)
        leg = lab.run(task)
        outcome = Outcome("bad rewards", trainer, kind, LATE, seconds=leg.seconds)
        if has_ended(leg):
            end = leg.answers[0]["ended"]
            ok = end["step"] == STEPS and end.get("tracker_finite", True)
            outcome.verdict = ENDED if ok else DIFFERENT
            outcome.detail = f"the weights are {'finite' if end['finite'] else 'NOT FINITE'}"
        elif not leg.is_late and leg.error():
            outcome.verdict, outcome.detail = THEIRS, leg.error()[0][:200]
        yield outcome


# ---------------------------------------------------------------------------------------------------------- disks


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[bool]:
    """A disk of `kib` at `folder`, if one may be mounted here, else nothing: whether there is one."""
    folder.mkdir(parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    there = libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={kib}k".encode()) == 0
    try:
        yield there
    finally:
        if there:
            libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH


def full_disks(lab: Lab, references: References, trainer: str) -> Iterator[Outcome]:
    """A disk that fills up while a checkpoint is written, then is made larger; and one that is full when the run ends."""
    changes = options("windows", "two kept")
    reference = references(trainer, 1, changes)
    folder = lab.folder / f"disk-{lab.starts}"
    begin = time.monotonic()
    with small_disk(folder, 500) as there:
        means = {} if there else {"file_limit": 60_000}
        how = "a tmpfs of 500 KiB" if there else "RLIMIT_FSIZE"
        leg = lab.run(lab.task(trainer, folder.name, changes, **means))
        said = leg.error() or ("", False)
        failed = said[0] and not leg.is_late
        if there:
            ctypes.CDLL(None).mount(b"none", os.fsencode(folder), b"tmpfs", 32, b"size=50m")  # MS_REMOUNT
        outcome = Outcome("full disk", trainer, f"during training, {how}, then more room", ERROR, starts=2)
        if failed:
            again = lab.run(lab.task(trainer, folder.name, changes, resume=bool(checkpoints(folder))))
            if has_ended(again):
                outcome.verdict, outcome.detail = compared(again, reference)
            elif again.error() and again.error()[1]:
                outcome.verdict, outcome.detail = REFUSED, again.error()[0]
            else:
                outcome.detail = again.error()[0] if again.error() else str(again.statuses)
        outcome.detail = (
            (outcome.detail + f" (stopped by {said[0]}"[:150] + ")").strip().replace(str(lab.folder), "...")
        )
        outcome.seconds = time.monotonic() - begin
    yield outcome

    folder, begin = lab.folder / f"disk-{lab.starts}", time.monotonic()
    changes = options("windows", "two kept", save_strategy="no")
    reference = references(trainer, 1, changes)
    with small_disk(folder, 200) as there:
        means = {"fill": True} if there else {"file_limit": 20_000}
        leg = lab.run(lab.task(trainer, folder.name, changes, **means))
        outcome = Outcome("full disk", trainer, f"at the end, {'tmpfs' if there else 'RLIMIT_FSIZE'}", ERROR)
        if has_ended(leg):
            # what was trained; the records may have lost their last lines
            same = all(
                leg.answers[0]["ended"].get(name) == reference.answers[0]["ended"].get(name)
                for name in ("step", "weights", "tracker")
            )
            outcome.verdict = EQUAL if same else DIFFERENT
        elif leg.error():
            outcome.detail = leg.error()[0][:200]
        outcome.seconds = time.monotonic() - begin
    yield outcome


# ------------------------------------------------------------------------------------------- many batches, two runs


def many_batches(lab: Lab, batches: int, seed: int, timed: bool) -> Outcome:
    """Thousands of batches without a model: memory and time stay flat, every budget is spent, beliefs follow the truth."""
    begin, file = time.monotonic(), lab.folder / f"batches-{lab.starts}.jsonl"
    leg = _child(lab, lambda: _batches(file, batches, seed, timed))
    said, is_well = leg.answers[0] or (f"status {leg.statuses[0]}", False)
    case, seconds = f"{batches} batches without a model", time.monotonic() - begin
    return Outcome("long run", "knapsack", case, ENDED if is_well else ERROR, said, seconds=seconds)


def _batches(file: Path, batches: int, seed: int, timed: bool) -> tuple[str, bool]:
    """What was seen, and whether it is well."""
    rng = np.random.default_rng(seed)
    prompts, size, ranks = 2000, 32, 4
    truth = rng.random(prompts)
    rule, tracker, writer = get_rule("posterior"), SuccessRateTracker(), HistoryWriter(file)
    memory, seconds = [], []
    for batch in range(batches):
        started = time.process_time()
        chosen = rng.choice(prompts, size, replace=False)
        keys = tuple(f"p{i}" for i in chosen)
        evidence = tracker.evidence(keys)
        allocation = rule(evidence, 8 * size, 2, 64)
        counts = np.asarray(allocation.counts)
        plan = plan_rollouts(counts, ranks, evidence.mean_length)
        if (
            counts.sum() != 8 * size
            or counts.min() < 2
            or (np.bincount(plan.row_prompt, minlength=size) != counts).any()
        ):
            return f"batch {batch}: counts {counts}", False
        won = rng.binomial(counts, truth[chosen]).astype(float)
        tokens = rng.integers(1, 50, size) * counts
        record = RolloutRecord(
            evidence=evidence,
            allocation=Allocation(counts),
            solver_seconds=0.0,
            successes=won,
            trials=counts.astype(float),
            tokens=tokens.astype(float),
            mean_reward=won / counts,
            mixed=(won > 0) & (won < counts),
            rank_imbalance=plan.imbalance(tokens[plan.row_prompt] / counts[plan.row_prompt]),
        )
        record.metrics()
        tracker.observe(keys, won, counts, rollouts=counts, tokens=tokens)
        writer.append(record, batch + 1, batch / 100, "posterior")
        seconds.append(time.process_time() - started)
        if batch % 20 == 0:  # it takes longer than a batch
            memory.append(own_memory())
    grown, slower = growth(memory), growth(seconds, np.median, ratio=True)
    known = tracker.evidence([f"p{i}" for i in range(prompts) if f"p{i}" in tracker])
    met = [i for i in range(prompts) if f"p{i}" in tracker]
    # A posterior with a memory of some visits is noisy, but not off to one side.
    bias = float(np.mean(known.alpha / (known.alpha + known.beta) - truth[met]))
    length = len(RolloutHistory.load(file))
    said = (
        f"memory {grown:+.1f} MiB from the third eighth to the last, time of a batch x{slower:.2f} "
        f"({1e3 * np.median(seconds):.1f} ms), believed rates {bias:+.3f} off on average"
    )
    file.unlink()
    is_flat = grown < 8 and (slower < 1.5 or not timed)
    return said, bool(is_flat and abs(bias) < 0.05 and length == batches)


def long_runs(lab: Lab, steps: int, timed: bool) -> Iterator[Outcome]:
    """
    A run of many steps, with a checkpoint at every hundredth: memory and the time of a step stay flat. transformers and
    torch themselves keep a few KiB of each step, so TRL's own trainer goes first, and says how much that is. In a short run
    on a busy machine the time says nothing, and is not judged.
    """
    theirs = None
    for trainer in ("grpo", "knapsack"):
        changes = options("windows", "two kept", max_steps=steps, save_steps=100)
        leg = lab.run(lab.task(trainer, f"long-{lab.starts}", changes, watched=True), limit=600)
        outcome = Outcome("long run", trainer, f"{steps} steps", LATE, seconds=leg.seconds)
        if has_ended(leg):
            end = leg.answers[0]["ended"]
            theirs = theirs or end
            is_flat = end["memory"] < theirs["memory"] + 2 and (end["time"] < theirs["time"] + 0.3 or not timed)
            outcome.verdict = ENDED if is_flat else DIFFERENT
            outcome.detail = (
                f"memory {end['memory']:+.1f} MiB from the third eighth to the last, time of a step x{end['time']:.2f}"
            )
        elif leg.error():
            outcome.verdict, outcome.detail = ERROR, leg.error()[0][:300]
        yield outcome


def two_runs(lab: Lab, references: References, trainer: str) -> Outcome:
    """A second run is started in the folder of the first, while that trains."""
    changes = options("windows", "two kept")
    reference = references(trainer, 1, changes)
    folder = lab.folder / f"two-{lab.starts}"
    begin = time.monotonic()
    first = lab.start(lab.task(trainer, folder.name, changes))
    while not checkpoints(folder) and time.monotonic() < begin + 60:
        time.sleep(0.005)
    second = lab.run(lab.task(trainer, folder.name, changes | {"seed": 7}))
    ended = lab.wait(first, begin, folder, None, lab.limit)
    outcome = Outcome("two runs in a folder", trainer, "the second with another seed", ERROR, starts=2)
    verdict, detail = compared(ended, reference) if has_ended(ended) else (ERROR, str(ended.error()))
    said = second.error()
    if verdict != EQUAL:
        outcome.verdict, outcome.detail = verdict, f"the first: {detail}"
    elif has_ended(second):
        outcome.verdict, outcome.detail = DIFFERENT, "both ended, and mixed their checkpoints"
    elif said is not None:
        outcome.verdict, outcome.detail = (REFUSED if said[1] else ERROR), said[0]
    outcome.detail = outcome.detail[:300].replace(str(lab.folder), "...")
    outcome.seconds = time.monotonic() - begin
    return outcome
