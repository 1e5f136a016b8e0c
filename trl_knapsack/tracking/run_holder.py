"""Which process is training in a folder; the file is there only while it does."""

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .text import printable


HOLDER_FILE = "knapsack_run.json"


@dataclass(frozen=True)
class RunHolder:
    """
    The process that trains in a folder.

    Attributes:
        pid (`int`): Its process id.
        host (`str`): The machine it runs on.
        since (`datetime`): When it began to train, or to continue from a checkpoint; local time of that machine.
        step (`int`): Optimizer steps that had been done by then.
        max_steps (`int`): Optimizer steps after which it will be done, 0 if unknown.
    """

    pid: int
    host: str
    since: datetime
    step: int = 0
    max_steps: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host, 100)!r} since '{self.since:%Y-%m-%d %H:%M:%S}'"

    @classmethod
    def this_process(cls, step: int, max_steps: int) -> "RunHolder":
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), datetime.now().replace(microsecond=0), step, max_steps)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "RunHolder | None":
        """The holder of a run's folder; None if no run is under way, or if the file can't be read."""
        try:
            said: dict[str, Any] = json.loads((Path(folder) / HOLDER_FILE).read_text(encoding="utf-8"))
            steps = {name: int(said.get(name, 0)) for name in ("step", "max_steps")}
            return cls(int(said["pid"]), str(said["host"]), datetime.fromisoformat(said["since"]), **steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def write(self, folder: str | os.PathLike) -> None:
        """Write it into a run's folder."""
        said = asdict(self) | {"since": self.since.isoformat(" ", "seconds")}
        (Path(folder) / HOLDER_FILE).write_text(json.dumps(said) + "\n", encoding="utf-8")

    def is_gone(self) -> bool:
        """Whether the process has ended without removing the file. False on another machine, where that can't be known."""
        if self.host != socket.gethostname():
            return False
        import psutil

        try:
            # ids are used again: a process that is younger than the file is another one
            return datetime.fromtimestamp(psutil.Process(self.pid).create_time()) > self.since.replace(tzinfo=None)
        except (psutil.NoSuchProcess, ValueError):  # ValueError: an id that no process can have
            return True
        except (psutil.Error, OSError, OverflowError):
            return False
