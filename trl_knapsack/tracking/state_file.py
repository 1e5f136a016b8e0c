"""Where a run keeps its success rates."""

from pathlib import Path


STATE_FILE = "knapsack_state.npz"


def find_state(path: str | Path) -> Path:
    """
    The state file of a run: `path` itself, the one in that folder, or the one in its newest checkpoint.

    Raises:
        `FileNotFoundError`: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    checkpoints = [folder for folder in path.glob("checkpoint-*") if folder.name.split("-")[-1].isdigit()]
    newest = sorted(checkpoints, key=lambda folder: int(folder.name.split("-")[-1]), reverse=True)
    for folder in [path, *newest]:
        if (folder / STATE_FILE).is_file():
            return folder / STATE_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a file, or the folder of a run.")
    raise FileNotFoundError(f"{path} holds no {STATE_FILE}; name a folder that KnapsackGRPOTrainer wrote.")
