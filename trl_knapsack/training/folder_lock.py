"""One run at a time in an output folder: two would mix their records and checkpoints."""

import json
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from accelerate.logging import get_logger
from filelock import FileLock, Timeout
from transformers import TrainerCallback

from ..errors import InvalidInputError
from .ranks import all_ranks_or_none


logger = get_logger(__name__)

_LOCK_FILE = "knapsack_run.lock"
_HOLDER_FILE = "knapsack_run.json"


class RunFolderLock(TrainerCallback):
    """
    Holds the run's folder while it trains. The lock is the operating system's, so a run that was killed does not keep it.

    Args:
        run_folder (`Callable[[], str]`): Folder of the run under way.
    """

    def __init__(self, run_folder: Callable[[], str]):
        self.run_folder = run_folder
        self._lock: FileLock | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        with all_ranks_or_none():
            if state.is_world_process_zero:
                self._take(Path(self.run_folder()))

    def _take(self, folder: Path) -> None:
        self.release()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InvalidInputError(
                f"{folder} is in use by another run, {_holder(folder)}; wait for it or stop it, or name another output_dir."
            ) from None
        except (NotImplementedError, OSError) as error:  # some network file systems know no locks
            logger.warning(f"{folder} can't be locked ({error}): do not start a second run in it.")
            return
        self._lock = lock
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        (folder / _HOLDER_FILE).write_text(json.dumps(holder) + "\n", encoding="utf-8")

    def release(self) -> None:
        """Let another run have the folder. Safe to call twice."""
        if self._lock is not None:
            Path(self._lock.lock_file).with_name(_HOLDER_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def _holder(folder: Path) -> str:
    """Who holds the folder, in words."""
    try:
        holder = json.loads((folder / _HOLDER_FILE).read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {str(holder['host'])[:100]!r} since {str(holder['since'])[:19]!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not said who it is"
