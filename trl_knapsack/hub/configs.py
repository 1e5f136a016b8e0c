"""Configurations and success rates on the Hugging Face Hub."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from trl import ModelConfig, ScriptArguments, TrlParser

from ..errors import InvalidInputError, MissingFileError
from ..tracking.state_file import did_you_mean
from ..tracking.text import printable
from .cards import config_card
from .config_file import CONFIG_FILE, check_own_file, checked_fields, read_config_file, recipe, write_config_file
from .files import download_file, hub_errors, is_repository
from .states import write_success_state


class HubConfig:
    """What [`KnapsackGRPOConfig`] does with files and the Hub."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        script_args: Sequence[type] = (ScriptArguments, ModelConfig),
        **overrides: Any,
    ) -> Self:
        """
        The configuration in a repository of the Hub, in a folder, or in a YAML file.

        Nothing from the Hub is executed. Every field must be known, and its value of the field's type; fields that
        concern your machine or your accounts, or would have code run, are refused if they come from the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                `"owner/name"` or `"owner/name@revision"` on the Hub, a folder with a `knapsack_config.yaml`, or a file.
            revision (`str`, *optional*, defaults to `"main"`):
                Branch, tag or commit.
            token (`str` or `bool`, *optional*):
                Token for a private repository. By default the one of `hf auth login`.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Folder for downloaded files, in place of the usual cache.
            force_download (`bool`, *optional*, defaults to `False`):
                Download again what is in the cache.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Use the cache alone, without a network.
            script_args (`Sequence[type]`, *optional*):
                Dataclasses of the script that reads the same file, by default TRL's `ScriptArguments` and
                `ModelConfig`. Their fields are checked, and are not part of what is returned.
            overrides:
                Fields to set, in place of what the file says.

        Raises:
            `OSError`: if there is no such repository, revision or file, or it can't be reached.
            `ValueError`: naming the field, if one is unknown or its value is not of its type.
        """
        name = os.fspath(pretrained_model_name_or_path)
        path, from_hub = local_config_file(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        source = f"{CONFIG_FILE} of {name}" if from_hub else path
        values = checked_fields(read_config_file(path, source), (cls, *script_args), source, from_hub=from_hub)
        own = {field: value for field, value in values.items() if field in cls.__dataclass_fields__}
        try:
            return cls(**{**own, **overrides})
        except TypeError as error:  # of a mapping with keys that transformers or accelerate do not know
            if not set(overrides) <= set(cls.__dataclass_fields__):
                raise
            raise InvalidInputError(
                f"{source} can't be used: {printable(str(error), 200)}; correct it there."
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike, script_args: Sequence[Any] = ()) -> str:
        """
        Save as `knapsack_config.yaml`, for [`~KnapsackGRPOConfig.from_pretrained`] and for `--config`.

        Fields at their defaults are left out, and so is what concerns your machine, your accounts or this one run:
        `output_dir`, `report_to`, `hub_token`, paths, and the like.

        Args:
            save_directory (`str` or `os.PathLike`):
                Folder, made if there is none.
            script_args (`Sequence[dataclass]`, *optional*):
                Dataclasses of the script whose fields go into the same file, such as TRL's `ScriptArguments` and
                `ModelConfig`: with a `dataset_name` and a `model_name_or_path`, the file is the whole recipe.

        Returns:
            `str`: path of the file.

        Raises:
            `ValueError`: naming a field that a YAML file can't hold, or that looks like a secret.
        """
        values = recipe(self, script_args)
        os.makedirs(save_directory, exist_ok=True)
        path = os.path.join(save_directory, CONFIG_FILE)
        write_config_file(path, values)
        return path

    # Not `push_to_hub`, which is a field of `TrainingArguments`.
    def push_config_to_hub(
        self,
        repo_id: str,
        *,
        script_args: Sequence[Any] = (),
        success_state: str | os.PathLike | None = None,
        metrics: Mapping[str, Any] | None = None,
        description: str | None = None,
        commit_message: str = "Upload KnapsackGRPOConfig",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """
        Publish the configuration on the Hub, with a README, and with the success rates of a run if you name them.

        Args:
            repo_id (`str`):
                `"owner/name"`; made if there is none. A README that is there keeps all but its section on the
                configuration.
            script_args (`Sequence[dataclass]`, *optional*):
                As for [`~KnapsackGRPOConfig.save_pretrained`].
            success_state (`str` or `os.PathLike`, *optional*):
                Checkpoint or output folder of a run, or the `knapsack_state.safetensors` in it: its success rates are
                published beside the configuration. Needs the `dataset_name` in `script_args`, to say what they are of.
            metrics (`Mapping[str, Any]`, *optional*):
                What you measured, for the README: numbers by name, or by name and contender, as in
                `{"held-out accuracy": {"uniform": 0.769, "posterior": 0.791}}`.
            description (`str`, *optional*):
                Markdown for the top of the README: what this is for, and how the metrics were measured.
            commit_message (`str`, *optional*, defaults to `"Upload KnapsackGRPOConfig"`):
                Message of the commit; `commit_description` is its body.
            private (`bool`, *optional*):
                Whether a new repository is private. By default as your organisation has it.
            token (`str` or `bool`, *optional*):
                Token with write access. By default the one of `hf auth login`.
            revision (`str`, *optional*, defaults to `"main"`):
                Branch to commit to.
            create_pr (`bool`, *optional*, defaults to `False`):
                Open a pull request in place of a commit.

        Returns:
            `str`: URL of the commit.

        Raises:
            `ValueError`: naming a field that can't be published.
            `OSError`: if the Hub can't be reached, or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, script_args)
            values = read_config_file(os.path.join(folder, CONFIG_FILE))
            if success_state is not None:
                write_success_state(folder, success_state, self, script_args)
            with hub_errors(repo_id):
                api = HfApi(token=token)
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                if revision is not None and not revision.startswith("refs/"):
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
                card = config_card(
                    repo_id, values, _readme(repo_id, token, revision), metrics, description, success_state is not None
                )
                card.save(os.path.join(folder, "README.md"))
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message,
                    commit_description=commit_description,
                    revision=revision,
                    create_pr=create_pr,
                )
        return commit.pr_url or commit.commit_url


def resolve_config_argument(
    arguments: Sequence[str], dataclass_types: Sequence[type], *, token: str | bool | None = None
) -> list[str]:
    """
    A script's arguments, with a `--config` of the Hub replaced by a local file, for [`~trl.TrlParser`] to read.

    `--config owner/name`, or `owner/name@revision`, is downloaded and checked as by
    [`~KnapsackGRPOConfig.from_pretrained`]; a folder stands for the `knapsack_config.yaml` in it. Other files are left to
    the parser.

    Args:
        arguments (`Sequence[str]`): For example `sys.argv[1:]`.
        dataclass_types (`Sequence[type]`): Those of the parser: their fields are known.
        token (`str` or `bool`, *optional*): Token for a private repository.

    Raises:
        `OSError`, `ValueError`: as [`~KnapsackGRPOConfig.from_pretrained`].

    Example:

    ```python
    types = (ScriptArguments, KnapsackGRPOConfig, ModelConfig)
    script_args, training_args, model_args = TrlParser(types).parse_args_and_config(
        resolve_config_argument(sys.argv[1:], types)
    )
    ```
    """
    arguments = [part for argument in arguments for part in _split_config(argument)]
    if "--config" not in arguments[:-1]:
        return arguments
    place = arguments.index("--config") + 1
    name = arguments[place]
    path, from_hub = local_config_file(name, token=token)
    if from_hub:
        source = f"{CONFIG_FILE} of {name}"
        checked_fields(read_config_file(path, source), dataclass_types, source, from_hub=True)
    else:
        check_own_file(path)  # the parser would show a traceback
    arguments[place] = path
    return arguments


def parse_script_arguments(dataclass_types: Sequence[type], arguments: Sequence[str] | None = None) -> tuple:
    """
    A script's dataclasses from its arguments: [`~trl.TrlParser`] after [`resolve_config_argument`]. What is wrong with a
    configuration ends the script with a sentence.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses of the script.
        arguments (`Sequence[str]`, *optional*): By default those of the process.

    Returns:
        `tuple`: an instance of each.
    """
    try:
        resolved = resolve_config_argument(sys.argv[1:] if arguments is None else arguments, dataclass_types)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    types: Any = dataclass_types  # transformers has a type of its own for any dataclass
    return TrlParser(types).parse_args_and_config(resolved)


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def local_config_file(name: str, **download: Any) -> tuple[str, bool]:
    """
    Local path of a configuration, and whether it is from the Hub.

    Args:
        name (`str`): A file, a folder, or a repository of the Hub.
        download: `revision`, `token` and so on, for the Hub.
    """
    if os.path.isfile(name):
        return name, False
    if os.path.isdir(name):
        path = os.path.join(name, CONFIG_FILE)
        if not os.path.isfile(path):
            raise MissingFileError(
                f"{name} has no {CONFIG_FILE}; save one there with config.save_pretrained({name!r})."
            )
        return path, False
    if not is_repository(name):
        raise MissingFileError(
            f"{name} is neither a file nor a folder, nor the name of a repository on the Hub such as owner/name; "
            + did_you_mean(name, "correct it")
        )
    return download_file(name, CONFIG_FILE, **download), True


def _readme(repo_id: str, token: str | bool | None, revision: str | None) -> str | None:
    """The README that a repository has, if it has one."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token, force_download=True)
    except EntryNotFoundError:
        return None
    with open(path, encoding="utf-8") as file:
        return file.read()
