"""Where success rates are, and what is in the file: that of a run, or a table of someone else's."""

import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from ..errors import InvalidInputError, MissingFileError
from .rate_files import MAX_COUNT, is_rate_file, read_rates
from .text import printable


#: Where success rates are kept in a checkpoint and in the folder of a run.
STATE_FILE = "knapsack_state.safetensors"

#: The arrays kept per prompt, 48 bytes in all.
FIELDS = {
    "successes": np.float64,  # decayed count of successful completions
    "failures": np.float64,  # decayed count of failed completions
    "last_rate": np.float64,  # success rate of the newest visit, NaN while no completion was scored
    "visits": np.int64,  # visits with at least one scored completion
    "rollouts": np.float64,  # decayed count of completions, scored or not
    "tokens": np.float64,  # decayed count of completion tokens
}

#: Arrays of the difficulty columns, of any number and shape, have names that begin with this.
DIFFICULTY = "difficulty."

_OLD_STATE_FILE = "knapsack_state.npz"
_FORMAT, _VERSION = "trl_knapsack.success_rates", "2"
_TENSORS = {"key_text": np.uint8, "key_lengths": np.int32, **FIELDS}
_MAX_HEADER = 16 * 1024  # ours has about 1 KiB; safetensors alone would take 100 MB


# ------------------------------------------------------------------------------------------------------- where


def find_state(path: str | os.PathLike) -> Path:
    """
    The file with success rates: `path` itself (a state, or a table that [`read_state`] takes), the state in that folder, or
    the one in its newest checkpoint.

    Raises:
        `MissingFileError` (a `FileNotFoundError`): if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    checkpoints = [folder for folder in path.glob("checkpoint-*") if folder.name.split("-")[-1].isdecimal()]
    newest = sorted(checkpoints, key=lambda folder: int(folder.name.split("-")[-1]), reverse=True)
    for name in (STATE_FILE, _OLD_STATE_FILE):  # the old one is found so that its reader can say what became of it
        for folder in (path, *newest):
            if (folder / name).is_file():
                return folder / name
    wrong = f"holds no {STATE_FILE}" if path.exists() else "does not exist"
    remedy = (
        "name a folder that KnapsackGRPOTrainer wrote, the file in it, or a .csv or .jsonl file with success rates"
    )
    raise MissingFileError(
        f"{printable(str(path))} {wrong}, so there are no success rates to continue with; "
        + did_you_mean(path, remedy)
    )


def did_you_mean(path: str | os.PathLike, otherwise: str) -> str:
    """`"did you mean 'outputs/run'?"` if a path is misspelt; else `otherwise` and a full stop."""
    close = close_path(path)
    return f"did you mean {close!r}?" if close else f"{otherwise}."


def close_path(path: str | os.PathLike) -> str:
    """The path that is there and resembles one that is not; nothing if there is none, or `path` is there."""
    found = Path(path).anchor or "."
    if os.path.exists(path):
        return ""
    for part in Path(path).parts[1 if Path(path).is_absolute() else 0 :]:
        there = os.path.join(found, part)
        if not os.path.exists(there):
            close = difflib.get_close_matches(part, os.listdir(found) if os.path.isdir(found) else [], n=1)
            if not close:
                return ""
            there = os.path.join(found, close[0])
        found = there
    return os.path.normpath(found)


# -------------------------------------------------------------------------------------------------------- the file


def write_state(path: str | os.PathLike, keys: Iterable[str], arrays: dict[str, np.ndarray]) -> None:
    """
    Write success rates, whole or not at all: beside `path`, to the disk, and then renamed.

    Args:
        path (`str` or `os.PathLike`): The file.
        keys (`Iterable[str]` of length `P`): Prompt keys.
        arrays (`dict[str, np.ndarray]`):
            One of shape `(P,)` for each of [`FIELDS`], and those whose names begin with [`DIFFICULTY`].

    Raises:
        `OSError`: if it can't be written; what was there before is still there.
    """
    keys = tuple(keys)
    text = "".join(keys).encode("utf-8", "surrogatepass")  # an id may hold half of a character, as JSON can
    tensors = {
        "key_text": np.frombuffer(text, dtype=np.uint8),  # (bytes of all keys,)
        "key_lengths": np.fromiter(map(len, keys), np.int32, len(keys)),  # (P,) in characters
        **{name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in FIELDS.items()},
        **{name: np.ascontiguousarray(array) for name, array in arrays.items() if name.startswith(DIFFICULTY)},
    }
    about = {"format": _FORMAT, "version": _VERSION, "digest": _digest(tensors)}
    content = safetensors.numpy.save(tensors, about)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # ours, and on a full disk in the way of everything else
        raise


def read_state(path: str | os.PathLike) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """
    Read what [`write_state`] wrote, or a `.csv`, `.tsv` or `.jsonl` table as [`~trl_knapsack.tracking.rate_files.read_rates`]
    takes, as one visit of each prompt. The file may be anyone's: nothing in it is believed before it is checked, and what is
    returned shares no memory with it.

    Returns:
        `tuple[dict[str, int], dict[str, np.ndarray]]`: as of [`checked_state`], and the arrays of the difficulty columns
        as they are in the file.

    Raises:
        `MissingFileError` (a `FileNotFoundError`): if there is no such file.
        `InvalidInputError` (a `ValueError`): if it is truncated, damaged, foreign, or of another version; of a table, if a
            line is not one of success rates.
    """
    if is_rate_file(path):
        return _state_of_rates(*read_rates(path))
    shown = printable(str(path))
    if not os.path.isfile(path):
        raise MissingFileError(f"{shown} does not exist, or is no file; name a {STATE_FILE}.")
    try:
        tensors = _read_tensors(path)
        text = tensors.pop("key_text").tobytes().decode("utf-8", "surrogatepass")
        lengths = tensors.pop("key_lengths")
        if (lengths < 0).any() or lengths.sum(dtype=np.int64) != len(text):
            raise InvalidInputError("the lengths of its keys are not those of their text")
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        keys = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        difficulty = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DIFFICULTY)}
        index, arrays = checked_state(keys, tensors)
        return index, arrays | difficulty
    except _Foreign as error:
        raise InvalidInputError(f"{shown} {error}") from None
    # safetensors raises errors of its own and of Python's for what it can't take
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        reason = printable(str(error) or type(error).__name__, 300).rstrip(".")
        raise InvalidInputError(
            f"{shown} is not a readable success-rate state ({reason}); name another, or restore it from a copy."
        ) from error


def checked_state(keys: Sequence[str], arrays: dict[str, np.ndarray]) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """
    Check the values of a state.

    Args:
        keys (`Sequence[str]` of length `P`): Prompt keys.
        arrays (`dict[str, np.ndarray]`): One for each of [`FIELDS`].

    Returns:
        `tuple[dict[str, int], dict[str, np.ndarray]]`: the row of each key, in order, and the arrays.

    Raises:
        `InvalidInputError` (a `ValueError`): naming the field that is of the wrong length or out of its range.
    """
    if not set(map(type, keys)) <= {str}:
        raise InvalidInputError("the keys of a success-rate state must be text.")
    index = dict(zip(keys, range(len(keys)), strict=True))
    if len(index) != len(keys):
        raise InvalidInputError("success-rate state repeats a prompt key.")
    for name in FIELDS:
        values = arrays[name]
        if values.shape != (len(keys),):
            raise InvalidInputError(
                f"success-rate state field {name!r} has shape {values.shape} for {len(keys)} keys."
            )
        if name == "last_rate":
            fits, rule = np.isnan(values) | ((values >= 0) & (values <= 1)), "neither missing nor in [0, 1]"
        else:
            fits, rule = (values >= 0) & (values <= MAX_COUNT), f"not finite, or negative, or above {MAX_COUNT:g}"
        if not fits.all():
            raise InvalidInputError(f"success-rate state field {name!r} has values that are {rule}.")
    return index, arrays


def _state_of_rates(keys: list[str], rates: dict[str, np.ndarray]) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """One visit of each prompt of a table. A prompt without trials was never scored, and is not counted as failed."""
    successes, trials, tokens = rates["successes"], rates["trials"], rates["tokens"]
    scored, lengths_known = trials > 0, ~np.isnan(tokens)
    arrays = {
        "successes": successes,
        "failures": trials - successes,
        "last_rate": np.divide(successes, trials, out=np.full(len(keys), np.nan), where=scored),
        "visits": scored.astype(np.int64),
        "rollouts": np.where(lengths_known, trials, 0.0),
        "tokens": np.where(lengths_known, tokens, 0.0),
    }
    return checked_state(keys, arrays)


class _Foreign(Exception):
    """A sound file, but none that this version reads; the text goes on from the file's name."""


def _read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of the file, of the types that they must have and as the digest says that they were written."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PK\x03\x04"):
        raise _Foreign(
            "is a .npz, the state of an earlier trl_knapsack, which is no longer read; load it with the version that wrote "
            "it, and give its state_dict() to load_state_dict() of this one's SuccessRateTracker."
        )
    if int.from_bytes(start, "little") > _MAX_HEADER:
        raise InvalidInputError("it does not begin with the header of a state")
    with safe_open(path, framework="np") as file:  # has compared the sizes that the header promises with the file's
        about = file.metadata() or {}
        if about.get("format") != _FORMAT:
            raise _Foreign(f"was not written by trl_knapsack; point to a {STATE_FILE} of a checkpoint.")
        if about.get("version") != _VERSION:
            raise _Foreign(
                f"has state version {printable(about.get('version', ''), 20)}, this trl_knapsack reads version "
                f"{_VERSION}; install the version that wrote it."
            )
        difficulty = sorted(name for name in file.keys() if name.startswith(DIFFICULTY))
        there = set(file.keys()) - set(difficulty)
        if there != set(_TENSORS):
            missing, unknown = sorted(set(_TENSORS) - there), sorted(there - set(_TENSORS))
            raise InvalidInputError(f"it has missing fields {missing} and unknown fields {unknown}")
        tensors = {name: np.array(file.get_tensor(name)) for name in (*_TENSORS, *difficulty)}  # copies
    for name, dtype in _TENSORS.items():
        if tensors[name].dtype != dtype or tensors[name].ndim != 1:
            raise InvalidInputError(f"{name} is of {tensors[name].dtype}{tensors[name].shape}")
    if about.get("digest") != _digest(tensors):
        raise InvalidInputError("its content does not match its digest, so it was damaged or truncated")
    return tensors


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(f"{_FORMAT} {_VERSION}".encode(), digest_size=16)
    difficulty = sorted(name for name in tensors if name.startswith(DIFFICULTY))
    for name in (*_TENSORS, *difficulty):
        digest.update(f"{name} {tensors[name].size} ".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
