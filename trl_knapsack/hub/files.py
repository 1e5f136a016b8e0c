"""Names and files on the Hugging Face Hub, and one-sentence errors for them."""

import os
import re
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubError, MissingFileError
from ..tracking.rate_files import ENDINGS
from ..tracking.state_file import close_path, did_you_mean
from ..tracking.text import printable


# "owner/name", or "owner/name@revision"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_FILE_ENDINGS = (".yaml", ".yml", ".json", ".npz", ".safetensors", *ENDINGS)


def is_repository(name: str) -> bool:
    """
    Whether `name` can be a repository of the Hub: `owner/name`, or `owner/name@revision`, and nothing local.

    Raises:
        `MissingFileError` (a `FileNotFoundError`): if there is a folder `owner` here, so that something in it was meant;
            with a revision the Hub is meant.
    """
    if (
        _REPOSITORY.fullmatch(name) is None
        or name.lower().endswith(_FILE_ENDINGS)
        or name.split("/")[0] in (".", "..")
        or os.path.exists(name)
    ):
        return False
    owner = name.split("/")[0]
    if "@" not in name and os.path.isdir(owner):
        raise MissingFileError(
            f"{name} does not exist: the folder {owner} has nothing by that name; "
            f"{did_you_mean(name, 'correct it')} On the Hub it would be {name}@main."
        )
    return True


def download_file(name: str, file: str, *, revision: str | None = None, **download: Any) -> str:
    """
    Local path of a file of a repository, from the cache or the Hub.

    Args:
        name (`str`): `owner/name`, or `owner/name@revision`.
        file (`str`): Its name there.
        revision (`str`, *optional*): Branch, tag or commit; the one in `name` counts for more.
        download: Further arguments of [`~huggingface_hub.hf_hub_download`].

    Raises:
        `MissingFileError` (a `FileNotFoundError`), `HubError` (an `OSError`): in one sentence that says what to do.
    """
    repo_id, _, in_name = name.partition("@")
    revision = in_name or revision
    with hub_errors(repo_id, file, revision):
        return hf_hub_download(repo_id, file, revision=revision, library_name="trl_knapsack", **download)


class hub_errors:  # noqa: N801, a context manager
    """What went wrong with the Hub, as an `OSError` of one sentence."""

    def __init__(self, repo_id: str, file: str | None = None, revision: str | None = None):
        self.repo_id, self.file, self.revision = repo_id, file, revision

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if not isinstance(error, Exception):
            return
        if isinstance(error.__cause__, HfHubHTTPError):  # with `force_download`
            error = error.__cause__
        repo_id, at = self.repo_id, f" at revision {self.revision}" if self.revision else ""
        if isinstance(error, RepositoryNotFoundError):
            message = (
                f"{repo_id} was not found at {constants.ENDPOINT}; correct the name, or log in with `hf auth login` if it "
                "is private."
            )
        elif isinstance(error, RevisionNotFoundError):
            message = f"{repo_id} has no revision {self.revision!r}; name a branch, a tag or a commit of it."
        elif isinstance(error, LocalEntryNotFoundError):
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} can't be reached"
            message = (
                f"{self.file} of {repo_id}{at} is not in the cache, and {why}; connect once to download it, or give a "
                "local file."
            )
        elif isinstance(error, EntryNotFoundError):
            message = f"{repo_id}{at} has no {self.file}; name a repository that trl_knapsack published."
        elif isinstance(error, HFValidationError):
            message = f"{repo_id} is not the name of a repository on the Hub: {error}"
        elif type(error).__module__.split(".")[0].startswith("httpx") and not isinstance(error, HfHubHTTPError):
            message = f"{constants.ENDPOINT} can't be reached ({error}); check your connection."
        elif isinstance(error, HfHubHTTPError):
            message = f"The Hub refused: {printable(' '.join(str(error).split()))}"
        else:
            return
        if self.file and not isinstance(
            error, RevisionNotFoundError | HFValidationError
        ):  # a folder may have been meant
            close = close_path(repo_id)
            message += " There is no folder of that name here" + (f"; did you mean {close!r}?" if close else ".")
        missing = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError)
        raise (MissingFileError if missing else HubError)(message) from error
