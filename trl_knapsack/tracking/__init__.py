"""What is known about each prompt: success rates, the keys they are stored under, and a run's batches on disk. NumPy only."""

from .difficulty_prior import DifficultyPrior
from .features import DifficultyColumns
from .history import HISTORY_FILE, RolloutHistory
from .keys import prompt_key
from .prior import SuccessPrior
from .records import RolloutRecord
from .state_file import STATE_FILE, find_state
from .tracker import SuccessRateTracker


__all__ = [
    "DifficultyColumns",
    "DifficultyPrior",
    "HISTORY_FILE",
    "RolloutHistory",
    "RolloutRecord",
    "STATE_FILE",
    "SuccessPrior",
    "SuccessRateTracker",
    "find_state",
    "prompt_key",
]
