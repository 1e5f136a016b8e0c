"""
Runs in processes of their own that are killed on purpose. torch and TRL are imported once, in this process, and a run is a
fork of it: a start takes milliseconds instead of seconds.
"""

import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import runs
import tiny
import torch
from accelerate.state import AcceleratorState, GradientState
from training import TRAINERS, Task, run_rank


@dataclass(frozen=True)
class Kill:
    """
    When and how a run is killed.

    Args:
        how (`str`): `"SIGKILL"`, `"SIGTERM"` or `"SIGINT"`.
        after (`float`): Seconds after the start, or after `saving`.
        saving (`int`): 0 for any moment; `n` for the moment in which the `n`-th checkpoint of the run appears.
        ranks (`tuple[int, ...]`, *optional*): Ranks that get the signal, all by default.
        grace (`float`): Seconds that a run has to end by itself before it gets `SIGKILL`.
    """

    how: str
    after: float
    saving: int = 0
    ranks: tuple[int, ...] | None = None
    grace: float = 20.0


@dataclass
class Leg:
    """
    How the processes of one start ended, by rank: `answers` are what they wrote, `None` of one that was killed, and
    `statuses` the exit statuses, negative for a signal.
    """

    answers: list[dict[str, Any] | None]
    statuses: list[int]
    seconds: float
    is_late: bool  # had to be ended, beyond its time limit
    is_killed: bool  # by its plan, and hence without an end
    said: str = ""  # what the ranks printed

    def error(self) -> tuple[str, bool] | None:
        """The first error, in words, and whether it is one of this package's sentences."""
        for answer in self.answers:
            if answer is not None and "error" in answer:
                return f"{answer['error']}: {answer['text']}", answer["is_a_sentence"]
        return None


class Lab:
    """
    Starts runs of the tiny model.

    Args:
        folder (`Path`): Where all files go.
        limit (`float`): Seconds that a start may take.
    """

    def __init__(self, folder: Path, limit: float = 90.0):
        self.folder, self.limit = folder, limit
        self.model = tiny.save_model(folder / "model")
        self.starts = 0
        self._warm_up()

    def _warm_up(self) -> None:
        """Do here once what every run would do again: imports on demand, compiled kernels, what libraries cache."""
        for trainer_class, config_class in TRAINERS.values():
            args = config_class(
                **runs.options(self.folder / "warm_up", max_steps=1, save_strategy="steps", save_steps=1)
            )
            with contextlib.redirect_stdout(open(os.devnull, "w")):
                runs.train(trainer_class, self.model, args)
        AcceleratorState._reset_state(True)  # a child makes its own, of one process or of a rank
        GradientState._reset_state()
        gc.collect()
        gc.freeze()

    def task(self, trainer: str, name: str, changes: dict[str, Any], **kwargs) -> Task:
        """A task whose output folder is `name` within this lab's."""
        return Task(trainer, self.model, str(self.folder / name), changes, **kwargs)

    def start(
        self, task: Task, processes: int = 1, on_rank: dict[int, dict[str, Any]] | None = None
    ) -> "list[tuple[int, Path]]":
        """Fork the ranks; process ids, and the files in which they will tell how they ended."""
        port = free_port()
        started = []
        for rank in range(processes):
            self.starts += 1
            log = self.folder / "logs" / f"{self.starts}.txt"
            answer = log.with_suffix(".json")
            log.parent.mkdir(exist_ok=True)
            mine = replace(task, **(on_rank or {}).get(rank, {}))
            pid = fork(
                lambda mine=mine, log=log, answer=answer, rank=rank: _child(mine, log, answer, rank, processes, port)
            )
            started.append((pid, answer))
        return started

    def run(
        self,
        task: Task,
        processes: int = 1,
        kill: Kill | None = None,
        on_rank: dict[int, dict[str, Any]] | None = None,
        limit: float | None = None,
        orphans: float | None = None,
    ) -> Leg:
        """
        Start a task, kill it as planned, and wait for its end.

        Args:
            limit (`float`, *optional*): Seconds after which it counts as hanging, and is ended.
            orphans (`float`, *optional*): Seconds that ranks may go on after one has ended; then they are killed, as
                `torchrun` does. By default as long as the limit.
        """
        begin = time.monotonic()
        ranks = self.start(task, processes, on_rank)
        return self.wait([*ranks], begin, Path(task.folder), kill, limit or self.limit, orphans)

    def wait(
        self,
        ranks: list[tuple[int, Path]],
        begin: float,
        folder: Path,
        kill: Kill | None,
        limit: float,
        orphans: float | None = None,
    ) -> Leg:
        statuses: list[int | None] = [None] * len(ranks)
        before = checkpoints(folder)
        seen, due, asked, first_end, is_late = 0, None, None, None, False
        if kill is not None and not kill.saving:
            due = begin + kill.after
        while None in statuses:
            now = time.monotonic()
            for rank, (pid, _) in enumerate(ranks):
                if statuses[rank] is None and (done := os.waitpid(pid, os.WNOHANG))[0]:
                    statuses[rank] = os.waitstatus_to_exitcode(done[1])
                    first_end = first_end or now
            if kill is not None and kill.saving and due is None:
                present = checkpoints(folder)
                seen += len(present - before)
                before = present
                if seen >= kill.saving:
                    due = now + kill.after
            if due is not None and asked is None and now >= due:
                asked = now
                self._signal(ranks, statuses, getattr(signal, kill.how), kill.ranks)
            overdue = asked is not None and now > asked + kill.grace
            orphaned = orphans is not None and first_end is not None and now > first_end + orphans
            if now > begin + limit or overdue or orphaned:
                is_late = is_late or now > begin + limit or overdue
                self._signal(ranks, statuses, signal.SIGKILL)
            time.sleep(0.001 if kill is not None and kill.saving and due is None else 0.004)
        answers = [json.loads(answer.read_text()) if answer.exists() else None for _, answer in ranks]
        without_end = any(answer is None or "interrupted" in answer for answer in answers)
        logs = [answer.with_suffix(".txt") for _, answer in ranks]
        said = "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
        return Leg(answers, statuses, time.monotonic() - begin, is_late, without_end, said)

    @staticmethod
    def _signal(ranks, statuses, number: int, only: tuple[int, ...] | None = None) -> None:
        for rank, (pid, _) in enumerate(ranks):
            if statuses[rank] is None and (only is None or rank in only):
                os.kill(pid, number)  # a process that was not waited for keeps its number


def checkpoints(folder: Path) -> set[str]:
    """Names of the checkpoints in a run's folder, whole or not."""
    try:
        return {name for name in os.listdir(folder) if name.startswith("checkpoint-")}
    except FileNotFoundError:
        return set()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def fork(body: Callable[[], int]) -> int:
    """The process id of a child that runs `body` and ends with its result as status, also if this process ends."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _child(task: Task, log: Path, answer: Path, rank: int, processes: int, port: int) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        # transformers hands `ddp_timeout` on to accelerators only, and would wait for half an hour on a CPU
        timeout = timedelta(seconds=task.changes.get("ddp_timeout", 1800))
        torch.distributed.init_process_group("gloo", timeout=timeout)
    if task.changes.get("enable_jit_checkpoint"):
        from transformers import trainer_jit_checkpoint

        # transformers waits three seconds before it saves; the whole run takes less
        trainer_jit_checkpoint.CheckpointManager.__init__.__defaults__ = (0.05,)
    return run_rank(task, answer)
