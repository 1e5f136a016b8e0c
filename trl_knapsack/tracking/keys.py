"""A stable key for every prompt: a column that the user names, or else a hash of the row's content."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError


def prompt_key(row: Mapping[str, Any], prompt_id_column: str | None = None) -> str:
    """
    Key under which a dataset row's success rate is kept: the same on every rank, in every run, after every restart.

    Args:
        row (`Mapping[str, Any]`):
            A dataset row.
        prompt_id_column (`str`, *optional*):
            Column that holds the row's id. Without it, the whole row is hashed, so that one prompt with two solutions
            has two keys.

    Returns:
        `str`: the id as text, or 32 hexadecimal digits.

    Raises:
        `ValueError`: if the id is missing, or the row holds something that has no stable content to hash.
    """
    if prompt_id_column is not None:
        if row.get(prompt_id_column) is None:
            raise InvalidInputError(
                f"prompt_id_column {prompt_id_column!r} has no value in a row with columns {sorted(row)}; "
                "give every row an id, or leave prompt_id_column unset to key prompts by content."
            )
        return str(row[prompt_id_column])
    digest = hashlib.blake2b(digest_size=16)
    for column in sorted(row):
        digest.update(f"{len(column)}:{column}".encode())
        try:
            _hash_into(digest, row[column])
        except TypeError:
            raise InvalidInputError(
                f"Column {column!r} holds a {type(row[column]).__name__}, which has no stable content to key a prompt "
                "by; name a column of ids with prompt_id_column."
            ) from None
    return digest.hexdigest()


def check_prompt_column(columns: Sequence[str] | None, dataset: str) -> None:
    """
    Refuse a dataset without prompts.

    Args:
        columns (`Sequence[str]` or `None`): Its columns; `None` for a stream that does not know them.
        dataset (`str`): What to call it.

    Raises:
        `ValueError`: if none of them is `prompt`, naming those that there are.
    """
    if columns is not None and "prompt" not in columns:
        raise InvalidInputError(
            f"{dataset} has no column 'prompt', only {columns}; rename the column of prompts to `prompt`."
        )


def _hash_into(digest: Any, value: Any) -> None:
    """Add `value` to `digest`, so that different values never give the same bytes."""
    if value is None or isinstance(value, bool | int | float):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, str):
        encoded = value.encode("utf-8", "surrogatepass")
        digest.update(b"str:%d:" % len(encoded) + encoded)
    elif isinstance(value, bytes):
        digest.update(b"bytes:%d:" % len(value) + value)
    elif isinstance(value, Mapping):
        digest.update(b"dict:%d:" % len(value))
        for key in sorted(value):
            _hash_into(digest, key)
            _hash_into(digest, value[key])
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:  # its bytes would be addresses
        _hash_into(digest, value.tolist())
    elif hasattr(value, "tobytes"):  # NumPy arrays and scalars (dtype, shape), PIL images (mode, size)
        kind = [str(getattr(value, name, "")) for name in ("dtype", "shape", "mode", "size")]
        digest.update(f"array:{kind}:".encode() + value.tobytes())
    elif hasattr(value, "numpy"):  # torch tensors
        _hash_into(digest, value.numpy())  # pyright: ignore[reportAttributeAccessIssue]  # narrowed to an array above
    elif isinstance(value, Sequence):
        digest.update(b"list:%d:" % len(value))
        for item in value:
            _hash_into(digest, item)
    elif hasattr(value, "isoformat"):  # dates and times
        _hash_into(digest, value.isoformat())  # pyright: ignore[reportAttributeAccessIssue]  # likewise
    else:
        raise TypeError
