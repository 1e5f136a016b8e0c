"""One run at a time per output folder: two would mix up their records and checkpoints."""

from collections.abc import Callable
from pathlib import Path

from accelerate.logging import get_logger
from filelock import FileLock, Timeout
from transformers import TrainerCallback

from ..errors import InvalidInputError
from ..tracking.run_holder import HOLDER_FILE, RunHolder
from .ranks import all_ranks_or_none


logger = get_logger(__name__)

_LOCK_FILE = "knapsack_run.lock"


class RunFolderLock(TrainerCallback):
    """
    Holds the run's folder while it trains. The lock is the operating system's, so it is released even if the run is killed.

    Args:
        run_folder (`Callable[[], str]`): Folder of the run under way.
    """

    def __init__(self, run_folder: Callable[[], str]):
        self.run_folder = run_folder
        self._lock: FileLock | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        with all_ranks_or_none():
            if state.is_world_process_zero:
                self._take(Path(self.run_folder()), RunHolder.this_process(state.global_step, state.max_steps))

    def _take(self, folder: Path, holder: RunHolder) -> None:
        self.release()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InvalidInputError(
                f"{folder} is in use by another run, {RunHolder.read(folder) or 'which has not said who it is'}; wait for it "
                "or stop it, or name another output_dir."
            ) from None
        except (NotImplementedError, OSError) as error:  # some network file systems know no locks
            logger.warning(f"{folder} can't be locked ({error}): do not start a second run in it.")
            return
        self._lock = lock
        holder.write(folder)

    def release(self) -> None:
        """Release the folder for another run. Safe to call twice."""
        if self._lock is not None:
            Path(self._lock.lock_file).with_name(HOLDER_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None
