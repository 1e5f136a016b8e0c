"""What happens alongside training: the tracker learns and is saved, batches are recorded, plots are shown."""

import os
from collections.abc import Callable

import numpy as np
from accelerate.logging import get_logger
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..errors import MissingFileError, require_matplotlib
from ..reporting.plots import PLOTS, to_image
from ..tracking.history import HISTORY_FILE, HistoryReader, HistoryWriter
from ..tracking.records import RolloutRecord
from ..tracking.state_file import STATE_FILE, find_state
from ..tracking.tracker import SuccessRateTracker
from .waiting import WaitingPrompts


logger = get_logger(__name__)


class SuccessRateCallback(TrainerCallback):
    """
    Tells the tracker how each generation batch turned out, and saves it in every checkpoint and at the end. Appends each
    batch to `knapsack_records.jsonl` in the run's folder, which [`RolloutHistory`] reads.

    [`KnapsackGRPOTrainer`] adds it automatically: `trainer.success_rate_callback`.

    Args:
        tracker ([`SuccessRateTracker`]): The tracker to feed.
        run_folder (`Callable[[], str]`): Where the run that is under way keeps its checkpoints; a hyperparameter search
            has a folder for each trial.
        allocation (`str`): Name of the rule that shares out the rollouts, for the record.

    Attributes:
        last_record ([`RolloutRecord`] or `None`): The latest generation batch: what was decided, and how it turned out.
        waiting ([`WaitingPrompts`]): Prompts that wait for the rest of their rollouts. They are dropped when a run ends.
    """

    def __init__(self, tracker: SuccessRateTracker, run_folder: Callable[[], str], allocation: str):
        self.tracker = tracker
        self.run_folder = run_folder
        self.allocation = allocation
        self.last_record: RolloutRecord | None = None
        self.waiting = WaitingPrompts()
        self._pending: list[tuple[RolloutRecord, WaitingPrompts, np.ndarray | None]] = []
        self._history: HistoryWriter | None = None  # on the main process, while it can write
        self._before_search: dict | None = None  # what a hyperparameter search begins each trial with

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_hyper_param_search and state.global_step == 0:
            if self._before_search is None:
                self._before_search = self.tracker.state_dict()
            self.tracker.load_state_dict(self._before_search)  # another trial's model is not this one's
        if state.global_step == 0:
            self.waiting = WaitingPrompts()  # those of an earlier call of `train` are not this run's
        self._history = None
        self._pending.clear()  # of a run that was interrupted within a step
        if state.is_world_process_zero:
            self._history = HistoryWriter(os.path.join(self.run_folder(), HISTORY_FILE))
            self._write(lambda history: history.begin(state.global_step))

    def record(self, record: RolloutRecord, waiting: WaitingPrompts, features: np.ndarray | None = None) -> None:
        """
        Take note of a generation batch, and of who waits after it; both count from the end of the step on, or from the
        next batch.

        Args:
            record ([`RolloutRecord`]): The batch.
            waiting ([`WaitingPrompts`]): Who waits after it.
            features (`(P, D)`, *optional*): What the difficulty columns say of its prompts.
        """
        self.last_record = record
        self._pending.append((record, waiting, features))

    def on_step_end(self, args, state, control, **kwargs):
        self.learn(state.global_step, state.epoch)

    def learn(self, step: int, epoch: float | None) -> None:
        """
        Let the tracker learn of the batches that it has not heard of yet, and write them down.

        Args:
            step (`int`): Optimizer step that they belong to, from 1.
            epoch (`float`, *optional*): Passes over the dataset.
        """
        for record, waiting, features in self._pending:
            self.waiting = waiting
            self.tracker.observe(
                record.keys,
                record.successes,
                record.trials,
                rollouts=record.allocation.counts,
                tokens=record.tokens,
                earlier=(record.successes_before, record.trials_before),
                features=features,
            )
        for record, *_ in self._pending:
            self._write(lambda history, record=record: history.append(record, step, epoch or 0.0, self.allocation))
        self._pending.clear()

    def _write(self, write: Callable[[HistoryWriter], None]) -> None:
        """A history that can't be written is given up: the run is worth more, and the other ranks would wait for it."""
        if self._history is None:
            return
        try:
            write(self._history)
        except (OSError, ValueError) as error:
            logger.warning(f"No more generation batches are recorded, training goes on: {error}")
            self._history = None

    def on_train_end(self, args, state, control, **kwargs):
        if args.should_save:  # for the next run, also where no checkpoints are kept
            try:
                self.save(self.run_folder())
            except OSError as error:  # a full disk, say: the model is trained, and `train` shall return
                logger.error(f"The success rates are not saved in {self.run_folder()}: {error}")

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write the success rates into a folder, which is made if there is none.

        Raises:
            `OSError`: if that is not possible.
        """
        os.makedirs(folder, exist_ok=True)
        self.tracker.save(os.path.join(folder, STATE_FILE))

    def load(self, path: str | os.PathLike) -> None:
        """
        Continue with the success rates of another run.

        Args:
            path (`str` or `os.PathLike`): A checkpoint or output folder, or the state file in it, as for
                [`~trl_knapsack.tracking.find_state`].

        Raises:
            `FileNotFoundError`: if there are none, because another trainer wrote the folder.
            `ValueError`: if they can't be read.
        """
        try:
            file = find_state(path)
        except MissingFileError as error:
            raise MissingFileError(f"{error} To resume without them, set resume_success_state=False.") from None
        self.tracker.load(file)


class PlotCallback(TrainerCallback):
    """
    Shows the figures of the run so far as images, where its metrics go: TensorBoard, Weights & Biases, trackio.

    [`KnapsackGRPOTrainer`] adds it automatically if `plot_steps` is set. An error here is only a warning: the run continues.

    Args:
        plot_steps (`int`): Steps between two sets of figures; the last step always gets one.
        run_folder (`Callable[[], str]`): Folder with the history of the run under way.
        callbacks (`Callable[[], list[TrainerCallback]]`): The trainer's callbacks, of which these three are served.
    """

    def __init__(self, plot_steps: int, run_folder: Callable[[], str], callbacks: Callable[[], list[TrainerCallback]]):
        require_matplotlib()
        self.plot_steps = plot_steps
        self.run_folder = run_folder
        self.callbacks = callbacks
        self._reader: HistoryReader | None = None  # of the run under way: what it has read it does not read again

    def on_train_begin(self, args, state, control, **kwargs):
        self._reader = None
        if state.is_world_process_zero and not self._served():
            logger.warning(
                f"plot_steps ({self.plot_steps}) shows plots in tensorboard, wandb and trackio, but report_to is "
                f"{args.report_to}; name one of them, or plot the run afterwards with `trl-knapsack plot {args.output_dir}`."
            )

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % self.plot_steps == 0 or state.global_step == state.max_steps
        if not (due and state.is_world_process_zero and self._served()):
            return
        try:
            self._reader = self._reader or HistoryReader(self.run_folder())
            history = self._reader.read()
            images = {f"knapsack/plots/{name}": to_image(plot(history)) for name, plot in PLOTS.items()}
        except Exception as error:
            logger.warning(f"No plots at step {state.global_step}: {error}")
            return
        for callback in self._served():
            try:
                _show(callback, images, state.global_step)
            except Exception as error:
                logger.warning(
                    f"{type(callback).__name__} did not take the plots of step {state.global_step}: {error}"
                )

    def _served(self) -> list[TrainerCallback]:
        return [c for c in self.callbacks() if isinstance(c, TensorBoardCallback | WandbCallback | TrackioCallback)]


def _show(callback: TrainerCallback, images: dict[str, np.ndarray], step: int) -> None:
    """Hand images `(height, width, 3)` over to what `callback` logs to, if that takes images."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        for name, image in images.items():
            callback.tb_writer.add_image(name, image, step, dataformats="HWC")
    elif isinstance(callback, WandbCallback):
        import wandb

        if wandb.run is not None:  # none with WANDB_DISABLED
            wandb.log({name: wandb.Image(image) for name, image in images.items()} | {"train/global_step": step})
    elif isinstance(callback, TrackioCallback):
        import trackio

        trackio.log({name: trackio.Image(image) for name, image in images.items()} | {"train/global_step": step})
