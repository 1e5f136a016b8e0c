"""Configurations and success rates on the Hub: the real client against a Hub on loopback."""

import json
import os
import random
import string
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from huggingface_hub import ModelCard, constants
from loopback_hub import TOKEN
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, SuccessRateTracker
from trl_knapsack.errors import InvalidInputError, MissingFileError
from trl_knapsack.hub import find_success_state, parse_script_arguments, resolve_config_argument
from trl_knapsack.hub.ownership import is_personal, is_unsorted


CPU = {"use_cpu": True, "bf16": False}  # what a machine without a GPU must say of any configuration
RECIPE = {
    "allocation": "filter",
    "num_generations": 4,
    "max_generations": 16,
    "success_prior": [1.0, 1.5],
    "learning_rate": 1e-6 / 3,
    "lr_scheduler_type": "cosine",
    "generation_batch_size": 32,
    "model_init_kwargs": {"dtype": "bfloat16"},
    "bf16": False,
}


@dataclass
class RewardArguments(ScriptArguments):
    reward_funcs: list[str] | None = None
    reward_model_name_or_path: str | None = None


def config(**options) -> KnapsackGRPOConfig:
    return KnapsackGRPOConfig(**{"output_dir": "out", "use_cpu": True, **RECIPE, **options})


def differences(a, b) -> dict:
    return {
        f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)
    }


# -------------------------------------------------------------------------------------------------- there and back


def test_pushed_and_read_again(hub):
    url = config().push_config_to_hub("me/recipe", commit_message="a first recipe")
    (sha,) = [sha for sha, message in hub.messages.items() if message == "a first recipe"]
    assert url == f"{hub.endpoint}/me/recipe/commit/{sha}"
    assert set(hub.files("me/recipe")) == {"knapsack_config.yaml", "README.md"}
    assert yaml.safe_load(hub.files("me/recipe")["knapsack_config.yaml"]) == RECIPE
    again = KnapsackGRPOConfig.from_pretrained("me/recipe", output_dir="out", use_cpu=True)
    assert differences(config(), again) == {}
    other = KnapsackGRPOConfig.from_pretrained("me/recipe", output_dir="out", use_cpu=True, allocation="paper")
    assert differences(config(), other) == {"allocation": ("filter", "paper")}


def test_a_revision(hub):
    config(max_generations=16).push_config_to_hub("me/recipe")
    first = hub.repos["me/recipe"]["branches"]["main"]
    config(max_generations=24).push_config_to_hub("me/recipe")
    config(max_generations=32).push_config_to_hub("me/recipe", revision="wide")
    config(max_generations=40).push_config_to_hub("me/recipe", create_pr=True)

    def largest(name="me/recipe", **options):
        return KnapsackGRPOConfig.from_pretrained(name, use_cpu=True, **options).max_generations

    assert largest() == 24
    assert largest(revision=first) == 16
    assert largest(f"me/recipe@{first}") == 16
    assert largest("me/recipe@wide") == largest(revision="wide") == 32
    assert largest(revision="refs/pr/1") == 40
    with pytest.raises(OSError, match="me/recipe has no revision 'narrow'; name a branch"):
        largest(revision="narrow")


def test_pushing_again_keeps_what_the_branch_says(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")  # only the token that is given
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")

    def push(largest=16, **options):
        config(max_generations=largest).push_config_to_hub("me/recipe", private=True, token=TOKEN, **options)

    push()
    push(32, revision="wide")
    hub.commit("me/recipe", {"README.md": b"# By hand, on this branch"}, branch="wide")
    push(32, revision="wide")
    assert b"By hand, on this branch" in hub.files("me/recipe", "wide")["README.md"]
    assert b"By hand" not in hub.files("me/recipe")["README.md"]
    push(40, create_pr=True)
    push(64, revision="refs/pr/1")
    assert b"max_generations: 64" in hub.files("me/recipe", "refs/pr/1")["knapsack_config.yaml"]


def test_what_is_yours_is_not_published(hub, tmp_path, model, monkeypatch):
    mine = config(
        **{"output_dir": str(tmp_path), "run_name": "mine", "report_to": "tensorboard", "hub_token": "hf_" + "x" * 30},
        **{"hub_model_id": "me/model", "vllm_server_base_url": "http://10.0.0.1", "success_state_path": str(tmp_path)},
        **{"push_to_hub": True, "logging_steps": 5},
    )
    mine.push_config_to_hub(
        "me/recipe", script_args=[ScriptArguments(dataset_name=str(tmp_path)), ModelConfig(model_name_or_path=model)]
    )
    monkeypatch.chdir(tmp_path)
    Path("local_data").mkdir()
    for place in ("/another/machine", "local_data"):
        script_args = RewardArguments(dataset_name=place, reward_model_name_or_path=place)
        assert place not in Path(mine.save_pretrained(tmp_path, [script_args])).read_text()
    assert yaml.safe_load(hub.files("me/recipe")["knapsack_config.yaml"]) == {**RECIPE, "logging_steps": 5}
    for content in hub.files("me/recipe").values():
        for secret in (str(tmp_path), "hf_xxx", "10.0.0.1", "me/model"):
            assert secret.encode() not in content


def test_what_others_could_not_read_is_not_published(hub, caplog):
    kwargs = {"dtype": "bfloat16", "device_map": "auto", "trust_remote_code": False, "attn_implementation": None}
    mine = config(model_init_kwargs=kwargs, trust_remote_code=True, generation_kwargs={"custom_generate": "me/code"})
    kernel = ModelConfig(model_name_or_path="owner/model", attn_implementation="owner/kernel")
    mine.push_config_to_hub("me/recipe", script_args=[kernel, RewardArguments(reward_funcs=["my.reward"])])
    assert yaml.safe_load(hub.files("me/recipe")["knapsack_config.yaml"]) == {
        **RECIPE,
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": None},
        "generation_kwargs": {},
        "model_name_or_path": "owner/model",
    }
    assert load().model_init_kwargs == {"dtype": "bfloat16", "attn_implementation": None}
    said = [record.getMessage().split(" (")[0] for record in caplog.records if record.name.startswith("trl_knapsack")]
    assert sorted(said) == ["generation_kwargs.custom_generate", "model_init_kwargs.device_map"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"model_init_kwargs": {"token": "abc"}}, "model_init_kwargs.token"),
        ({"model_init_kwargs": '{"api_key": "abc"}'}, "model_init_kwargs.api_key"),
        ({"optim_args": "key=hf_" + "x" * 34}, "optim_args"),
    ],
)
def test_a_secret_is_refused(hub, options, name):
    with pytest.raises(ValueError, match=f"{name} looks like a secret"):
        config(**options).push_config_to_hub("me/recipe")
    assert hub.requests == []


def test_what_yaml_cannot_hold(tmp_path):
    import torch

    config(model_init_kwargs={"dtype": torch.bfloat16}).save_pretrained(tmp_path)
    assert KnapsackGRPOConfig.from_pretrained(tmp_path, use_cpu=True).model_init_kwargs == {"dtype": "bfloat16"}
    with pytest.raises(
        ValueError, match=r"model_init_kwargs.quantization_config is a object, which a YAML file can't hold"
    ):
        config(model_init_kwargs={"quantization_config": object()}).save_pretrained(tmp_path)


def values_of(option, rng: random.Random):
    """A value that a field of this name can have, other than its default; None for what is left alone."""
    default = option.default_factory() if option.default is MISSING else option.default
    if option.name in {"auto_find_batch_size", "tf32", "torch_compile", "fp16", "fp16_full_eval", "use_liger_kernel"}:
        return None  # refused by TRL, or by a machine without a GPU
    if isinstance(default, bool):
        return not default
    if isinstance(default, float) and option.name in {
        "learning_rate",
        "temperature",
        "beta",
        "epsilon",
        "weight_decay",
    }:
        return rng.uniform(1e-9, 1)
    if option.name in {"seed", "data_seed", "save_total_limit", "max_completion_length", "max_generations"}:
        return rng.randrange(8, 100_000)
    if option.name in {"success_reward_func", "prompt_id_column", "optim_args", "vllm_structured_outputs_regex"}:
        return "".join(rng.choices(string.printable + "äß€ 'no'", k=12))
    return None


@pytest.mark.parametrize("seed", range(5))
def test_the_round_trip_is_exact(tmp_path, seed):
    rng = random.Random(seed)
    clash = {
        "load_best_model_at_end",
        "use_transformers_paged",
        "batch_eval_metrics",
        "bf16_full_eval",
        "use_adaptive_entropy",
    }
    options = {
        option.name: value
        for option in fields(KnapsackGRPOConfig)
        if option.name not in clash
        and not is_personal(option.name)
        and rng.random() < 0.7
        and (value := values_of(option, rng)) is not None
    }
    assert len(options) > 10
    given = KnapsackGRPOConfig(**{"output_dir": "out", **options, **CPU})
    given.save_pretrained(tmp_path)
    assert yaml.safe_load((tmp_path / "knapsack_config.yaml").read_text()) == {**options, "bf16": False}
    again = KnapsackGRPOConfig.from_pretrained(tmp_path, output_dir="out", use_cpu=True)
    assert differences(given, again) == {}


def test_what_trl_derives_is_not_saved(tmp_path):
    def saved(args):
        args.save_pretrained(tmp_path)
        return yaml.safe_load((tmp_path / "knapsack_config.yaml").read_text())

    assert saved(KnapsackGRPOConfig(output_dir="out", **CPU)) == {"bf16": False}
    args = KnapsackGRPOConfig(output_dir="out", gradient_accumulation_steps=4, **CPU)
    assert (args.generation_batch_size, args.steps_per_generation) == (32, 4)
    assert saved(args) == {"bf16": False, "gradient_accumulation_steps": 4}
    args.steps_per_generation = 8  # set afterwards
    assert saved(args)["steps_per_generation"] == 8

    plain = GRPOConfig(output_dir="out", gradient_accumulation_steps=4, beta=0.1, **CPU)
    KnapsackGRPOConfig.from_grpo_config(plain).save_pretrained(tmp_path)
    again = KnapsackGRPOConfig.from_pretrained(tmp_path, output_dir="out", use_cpu=True)
    assert differences(KnapsackGRPOConfig.from_grpo_config(plain), again) == {}


def test_trl_reads_the_same_file(tmp_path):
    script_args = [
        ScriptArguments(dataset_name="owner/data", dataset_streaming=True),
        ModelConfig(model_name_or_path="owner/model", use_peft=True, lora_target_modules=["all-linear"]),
    ]
    path = config().save_pretrained(tmp_path, script_args)
    parser = TrlParser((ScriptArguments, KnapsackGRPOConfig, ModelConfig))
    script, training, model = parser.parse_args_and_config(["--config", path, "--output_dir", "out", "--use_cpu"])
    assert [script, model] == script_args
    assert differences(config(), training) == {}
    assert differences(config(), KnapsackGRPOConfig.from_pretrained(path, output_dir="out", use_cpu=True)) == {}


def test_the_recipe_of_the_example():
    path = Path(__file__).parent.parent / "examples" / "train_math.yaml"
    args = KnapsackGRPOConfig.from_pretrained(path)
    assert (args.allocation, args.prompt_id_column, args.learning_rate) == ("posterior", "id", 1e-4)


# ---------------------------------------------------------------------------------------------------- what is refused


WRONG = [
    ("min_generations: 2.5", "min_generations in {} must be an integer, but is 2.5; correct it there."),
    ("min_generations: true", "min_generations in {} must be an integer, but is True; correct it there."),
    ("min_generations: '2'", "min_generations in {} must be an integer, but is '2'"),
    ("use_vllm: 1", "use_vllm in {} must be true or false, but is 1"),
    ("temperature: true", "temperature in {} must be a number, but is True"),
    ("learning_rate: fast", "learning_rate in {} must be a number, but is 'fast'"),
    ("success_prior: 0.5", "success_prior in {} must be a list in which each item is a number, but is 0.5"),
    ("success_prior: [0.5, half]", "success_prior in {} must be a list in which each item is a number, but is [0.5, 'half']"),
    ("prompt_id_column: 3", "prompt_id_column in {} must be a text or null, but is 3"),
    ("num_generations_eval: x", "num_generations_eval in {} must be an integer or null, but is 'x'"),
    ("model_init_kwargs: [1]", "model_init_kwargs in {} must be a mapping or a text or null, but is [1]"),
    ("generation_kwargs: '{{x'", "generation_kwargs in {} must be a mapping, but is '{{x'"),
    ("generation_kwargs: '" + '{{"a":' * 9000 + "'", "generation_kwargs in {} must be a mapping, but is"),
    ("allocation: best", "allocation in {} must be one of 'posterior', 'paper', 'filter', 'uniform', but is 'best'"),
    ("save_strategy: no", "but is False; quote a word such as no or off, which YAML reads as false."),
    ("optim: adam", "optim in {} must be one of 'adamw_torch', "),
    ("optim_target_modules: [a, 1]", "optim_target_modules in {} must be null or a text or a list"),
    ("dtype: float64", "dtype in {} must be one of 'auto', 'bfloat16', 'float16', 'float32', but is 'float64'"),
    ("max_generation: 3", "'max_generation' in {} is no field of KnapsackGRPOConfig, ScriptArguments, ModelConfig; did you mean 'max_generations'?"),
    ("a_field_of_tomorrow: 3", "ModelConfig; remove it, or install a TRL that has it"),
    ("1: 3", "1 in {} is no field of"),
    ("env: {{LD_PRELOAD: x.so}}", "env in {} sets environment variables"),
    ("min_generations: 9", "min_generations (9) must be at most num_generations (8)"),
    ("- allocation", "{} holds a list, but must hold a mapping"),
    ("allocation: [", "{} is not plain YAML"),
    ("a: &a [1]\nb: *a", "{} is not plain YAML: aliases are not allowed"),
    ("seed: " + "[" * 5000, "{} is not plain YAML"),
    ("allocation: posterior #" + "x" * 70_000, "bytes, but a configuration has at most 65536"),
    ("!!python/object/apply:os.system ['touch {touched}']", "{} is not plain YAML: could not determine a constructor"),
    ("seed: !!python/object/new:os.system ['touch {touched}']", "{} is not plain YAML: could not determine a constructor"),
]  # fmt: skip


@pytest.mark.parametrize("from_hub", [False, True], ids=["a file", "the Hub"])
def test_what_is_wrong_is_named(hub, tmp_path, from_hub):
    for content, message in WRONG:
        content = content.format(touched=tmp_path / "touched")
        if from_hub:
            hub.put("me/wrong", knapsack_config__yaml=content)
            name, source = "me/wrong", "knapsack_config.yaml of me/wrong"
        else:
            name = source = str(tmp_path / "wrong.yaml")
            Path(name).write_text(content)
        with pytest.raises(ValueError) as error:
            KnapsackGRPOConfig.from_pretrained(name, **CPU)
        assert message.format(source) in str(error.value)
    assert not (tmp_path / "touched").exists()


def test_what_trl_can_not_take_is_a_sentence(tmp_path):
    """Of the right type, but with a key that accelerate does not know."""
    path = tmp_path / "mine.yaml"
    path.write_text("accelerator_config: {no_such_option: 1}")
    with pytest.raises(InvalidInputError) as error:
        KnapsackGRPOConfig.from_pretrained(path, **CPU)
    assert str(error.value).startswith(f"{path} can't be used: ")
    assert "no_such_option" in str(error.value) and str(error.value).endswith("; correct it there.")
    path.write_text("seed: 1")
    with pytest.raises(TypeError, match="no_such_field"):  # a mistake in code, not in the file
        KnapsackGRPOConfig.from_pretrained(path, no_such_field=1, **CPU)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("output_dir: /root", "output_dir"),
        ("hub_token: x", "hub_token"),
        ("push_to_hub: true", "push_to_hub"),
        ("log_completions_hub_repo: them/completions", "log_completions_hub_repo"),
        ("report_to: wandb", "report_to"),
        ("vllm_server_base_url: http://them", "vllm_server_base_url"),
        ("resume_from_checkpoint: them", "resume_from_checkpoint"),
        ("deepspeed: ds.json", "deepspeed"),
        ("trust_remote_code: true", "trust_remote_code"),
        ("attn_implementation: them/kernel", "attn_implementation"),
        ("model_init_kwargs: {trust_remote_code: true}", "model_init_kwargs.trust_remote_code"),
        ("model_init_kwargs: '{\"trust_remote_code\": true}'", "model_init_kwargs.trust_remote_code"),
        ("model_init_kwargs: {attn_implementation: them/kernel}", "model_init_kwargs.attn_implementation"),
        ("model_init_kwargs: {weights_only: false}", "model_init_kwargs.weights_only"),
        ("model_init_kwargs: {device_map: auto}", "model_init_kwargs.device_map"),
        ("generation_kwargs: {custom_generate: them/code}", "generation_kwargs.custom_generate"),
        ("generation_kwargs: {a: [{trust_remote_code: true}]}", "generation_kwargs.a.trust_remote_code"),
        ('generation_kwargs: {"\\e[31m": {trust_remote_code: true}}', r"generation_kwargs.\x1b[31m.trust_remote_code"),
        ("dataloader_num_workers: 100000", "dataloader_num_workers"),
        ("save_total_limit: 1", "save_total_limit"),
        ("save_steps: 1", "save_steps"),
        ("torch_compile_backend: os.system", "torch_compile_backend"),
        ("vllm_gpu_memory_utilization: 1.0", "vllm_gpu_memory_utilization"),
        ("load_best_model_at_end: true", "load_best_model_at_end"),
    ],
)
def test_a_stranger_decides_nothing_of_this_machine(hub, content, name):
    hub.put("them/theirs", knapsack_config__yaml=content)
    with pytest.raises(ValueError) as error:
        KnapsackGRPOConfig.from_pretrained("them/theirs", **CPU)
    assert str(error.value).startswith(f"{name} (")
    assert "in knapsack_config.yaml of them/theirs is not for a configuration from the Hub to set" in str(error.value)


def test_every_field_of_trl_is_an_experiments_or_the_users():
    """A new field of TRL is the user's until someone says otherwise, in trl_knapsack/hub/ownership.py."""
    assert [option.name for option in fields(GRPOConfig) if is_unsorted(option.name)] == []
    ours = {option.name for option in fields(KnapsackGRPOConfig)} - {option.name for option in fields(GRPOConfig)}
    assert {name for name in ours if is_personal(name)} == {"resume_success_state"}
    assert not is_personal("a_field_of_ones_own_script")


def test_a_field_that_nobody_sorted_is_the_users(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trl_knapsack.hub.ownership._EXPERIMENT", {"bf16"})
    config(temperature=0.5).save_pretrained(tmp_path)
    assert "temperature" not in (tmp_path / "knapsack_config.yaml").read_text()
    assert (
        "temperature is not saved: this trl_knapsack does not know whether it belongs to the experiment" in caplog.text
    )
    hub.put("me/recipe", knapsack_config__yaml="temperature: 0.5")
    with pytest.raises(
        InvalidInputError, match="temperature .0.5. in .* is not for a configuration from the Hub to set"
    ):
        load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "seed: !!python/object/apply:os.system ['touch touched']",
            "is not plain YAML: could not determine a constructor",
        ),
        ("a: [", "is not plain YAML: while parsing"),
        ("a: " + "[" * 5000, "is not plain YAML: "),
        ("a: \xff", "is not plain YAML: "),
        ("- a", "holds a list, but must hold a mapping"),
        ("", "holds a NoneType, but must hold a mapping"),
    ],
)
def test_a_file_of_ones_own_that_is_no_yaml_is_a_sentence(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=f"^mine.yaml {message}"):
        resolve_config_argument(["--config", "mine.yaml"], (KnapsackGRPOConfig,))
    with pytest.raises(SystemExit, match=f"^mine.yaml {message}"):
        parse_script_arguments((KnapsackGRPOConfig,), ["--config", "mine.yaml"])
    assert not Path("touched").exists()


def test_a_file_of_ones_own_may_say_more(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: &a [1]\nb: *a\nenv: {X: 1}\nsave_steps: 5\n")
    arguments = ["--config", str(tmp_path / "mine.yaml")]
    assert resolve_config_argument(arguments, (KnapsackGRPOConfig,)) == arguments


def test_rewards_by_name_or_by_path(hub):
    types = (RewardArguments, KnapsackGRPOConfig, ModelConfig)
    hub.put("them/theirs", knapsack_config__yaml="reward_funcs: [accuracy_reward]")
    script, *_ = TrlParser(types).parse_args_and_config(
        resolve_config_argument(["--config", "them/theirs", "--use_cpu", "--bf16", "false"], types)
    )
    assert script.reward_funcs == ["accuracy_reward"]
    hub.put("them/others", knapsack_config__yaml="reward_funcs: [os.system]")
    with pytest.raises(
        ValueError, match=r"reward_funcs \(\['os.system'\]\) in .* is not for a configuration from the Hub"
    ):
        resolve_config_argument(["--config", "them/others"], types)


def test_yaml_reads_some_numbers_as_text(tmp_path):
    (tmp_path / "knapsack_config.yaml").write_text("learning_rate: 1e-6\nnum_train_epochs: 2\nbeta: 1\n")
    args = KnapsackGRPOConfig.from_pretrained(tmp_path, **CPU)
    assert (args.learning_rate, args.num_train_epochs, args.beta) == (1e-6, 2, 1)


# ------------------------------------------------------------------------------------------------ what can't be reached


def load(name="me/recipe", **options):
    return KnapsackGRPOConfig.from_pretrained(name, use_cpu=True, **options)


def test_what_is_not_there(hub, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"me/recipe was not found at http://127.*; correct the name, or log in"
    ):
        load()
    hub.put("me/model", config__json="{}")
    with pytest.raises(FileNotFoundError, match=r"me/model has no knapsack_config.yaml; name a repository that"):
        load("me/model")
    with pytest.raises(
        FileNotFoundError, match=r"recipes/mine.yaml is neither a file nor a folder, nor the name of a repository"
    ):
        load("recipes/mine.yaml")
    with pytest.raises(
        FileNotFoundError, match=r"has no knapsack_config.yaml; save one there with config.save_pretrained"
    ):
        load(tmp_path)
    with pytest.raises(TypeError, match="max_generation"):
        config().save_pretrained(tmp_path)
        load(tmp_path, max_generation=3)


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config().save_pretrained(tmp_path / "outputs" / "run")
    for find in (
        load,
        lambda name: find_success_state(name),
        lambda name: resolve_config_argument(["--config", name], ()),
    ):
        with pytest.raises(MissingFileError) as error:
            find("outputs/rnu")
        assert str(error.value) == (
            "outputs/rnu does not exist: the folder outputs has nothing by that name; did you mean 'outputs/run'? On the Hub "
            "it would be outputs/rnu@main."
        )
        with pytest.raises(
            MissingFileError,
            match="has nothing by that name; correct it. On the Hub it would be outputs/elsewhere@main.$",
        ):
            find("outputs/elsewhere")
    assert hub.requests == []
    hub.put("outputs/rnu", knapsack_config__yaml="allocation: paper")
    assert load("outputs/rnu@main").allocation == "paper"


def test_what_is_not_on_the_hub_may_have_been_a_folder(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config().save_pretrained(tmp_path / "outputs" / "run")
    meant = r"There is no folder of that name here; did you mean 'outputs/run'\?"
    with pytest.raises(MissingFileError, match=f"output/run was not found at .* {meant}$"):
        load("output/run")
    with pytest.raises(MissingFileError, match=r"if it is private. There is no folder of that name here.$"):
        load("them/theirs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        MissingFileError, match=f"output/run is not in the cache, and HF_HUB_OFFLINE is set.* {meant}$"
    ):
        load("output/run")
    with pytest.raises(
        MissingFileError, match="ouptuts/config/run.yaml is neither a file .* as owner/name; correct it.$"
    ):
        load("ouptuts/config/run.yaml")
    with pytest.raises(MissingFileError, match="outputs/run.yml is neither a file .*; did you mean 'outputs/run'\\?$"):
        load("outputs/run.yml")


def test_a_private_repository(hub, monkeypatch):
    config().push_config_to_hub("me/recipe", private=True)
    assert load().allocation == "filter"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"me/recipe was not found at .*log in with `hf auth login` if it is private"
    ):
        load(force_download=True)
    assert load(token=TOKEN, force_download=True).allocation == "filter"
    with pytest.raises(OSError, match=r"The Hub refused: .*401"):
        config().push_config_to_hub("me/other")
    with pytest.raises(OSError, match=r"The Hub refused: .*401"):
        config().push_config_to_hub("me/other", token="hf_wrong")


def test_without_a_network(hub, monkeypatch, tmp_path):
    config().push_config_to_hub("me/recipe")
    load()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert load().allocation == "filter"
    assert load(local_files_only=True).allocation == "filter"
    with pytest.raises(
        FileNotFoundError,
        match="knapsack_config.yaml of me/other is not in the cache, and HF_HUB_OFFLINE is set; connect once to download it, "
        "or give a local file.",
    ):
        load("me/other")
    with pytest.raises(FileNotFoundError, match="is not in the cache"):
        load(cache_dir=tmp_path / "another")
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries five times
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert load().allocation == "filter"  # from the cache
    with pytest.raises(FileNotFoundError, match="is not in the cache, and http://127.0.0.1:9 can't be reached"):
        load("me/other")
    with pytest.raises(OSError, match="http://127.0.0.1:9 can't be reached"):
        config().push_config_to_hub("me/recipe")


# ------------------------------------------------------------------------------------------------------ --config


@dataclass
class OurArguments(ScriptArguments):
    size: int = 3


def test_config_of_the_hub_in_a_script(hub, tmp_path):
    types = (OurArguments, KnapsackGRPOConfig, ModelConfig)
    config().push_config_to_hub(
        "me/recipe", script_args=[OurArguments(dataset_name="owner/data", size=5), ModelConfig("owner/model")]
    )
    for given in (["--config", "me/recipe"], ["--config=me/recipe@main"]):
        arguments = resolve_config_argument(["--use_cpu", *given, "--seed", "7"], types)
        script, training, model = TrlParser(types).parse_args_and_config(arguments)
        assert (script.dataset_name, script.size, model.model_name_or_path) == ("owner/data", 5, "owner/model")
        assert differences(config(output_dir=training.output_dir), training) == {"seed": (42, 7)}

    config().save_pretrained(tmp_path / "folder")
    path = str(tmp_path / "folder" / "knapsack_config.yaml")
    assert resolve_config_argument(["--config", str(tmp_path / "folder")], types) == ["--config", path]
    assert resolve_config_argument(["--config", path], types) == ["--config", path]
    for arguments in ([], ["--seed", "3"], ["--config"]):
        assert resolve_config_argument(arguments, types) == arguments

    hub.put("them/theirs", knapsack_config__yaml="env: {A: b}")
    with pytest.raises(ValueError, match="env in knapsack_config.yaml of them/theirs sets environment variables"):
        resolve_config_argument(["--config", "them/theirs"], types)
    with pytest.raises(
        ValueError, match="'size' in knapsack_config.yaml of me/recipe is no field of KnapsackGRPOConfig"
    ):
        load()
    assert load(script_args=(OurArguments, ModelConfig)).allocation == "filter"


def test_the_example_reads_a_config_of_the_hub(hub, model, tmp_path):
    """In a process of its own, with nothing but the environment variables that a user would set."""
    config(max_steps=1).push_config_to_hub("me/recipe")
    script = Path(__file__).parent.parent / "examples" / "train_math.py"
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "its cache"),
    }
    done = subprocess.run(
        [sys.executable, str(script), "--config", "me/recipe", "--use_cpu", "--model_name_or_path", model],
        **{"env": env, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120},
    )
    # It has read the configuration, and goes on to miss what neither that nor the command line says.
    assert done.stderr.strip().splitlines()[-1].startswith("Give both --model_name_or_path and --dataset_name"), (
        done.stderr
    )
    assert "HEAD /me/recipe/resolve/main/knapsack_config.yaml" in hub.requests


# ---------------------------------------------------------------------------------------------------- README


def test_the_readme(hub):
    config().push_config_to_hub(
        "me/recipe",
        script_args=[ScriptArguments(dataset_name="owner/data")],
        metrics={"held-out accuracy": {"uniform": 0.769, "posterior": 0.779}, "hours": 3},
        description="Measured on **one** machine.",
    )
    content = hub.files("me/recipe")["README.md"].decode()
    card = ModelCard(content)
    assert card.data.tags == ["trl", "grpo", "knapsack-rl"]
    assert card.data.library_name == "trl"
    assert card.data.datasets == ["owner/data"]
    assert "https://huggingface.co/papers/2509.25849" in content
    import trl

    assert f"| TRL | {trl.__version__} |" in content
    assert "--config me/recipe" in content
    assert "Measured on **one** machine." in content
    assert "| metric | uniform | posterior | value |\n|---|--:|--:|--:|\n" in content
    assert "| held-out accuracy | 0.769 | 0.779 |  |\n| hours |  |  | 3 |" in content
    assert "knapsack_state" not in content
    (block,) = [part.split("```")[0] for part in content.split("```yaml\n")[1:]]
    assert yaml.safe_load(block) == {**RECIPE, "dataset_name": "owner/data"}

    # What its readers do: paste the snippet.
    (snippet,) = [part.split("```")[0] for part in content.split("```python\n")[1:]]
    namespace = {}
    exec(snippet.replace('output_dir="outputs"', 'output_dir="outputs", use_cpu=True'), namespace)
    assert differences(namespace["args"], config(output_dir="outputs")) == {}


def test_what_was_not_measured_is_not_said(hub):
    config().push_config_to_hub("me/recipe")
    assert "Measured" not in hub.files("me/recipe")["README.md"].decode()
    for value in (float("nan"), "better", True, None):
        with pytest.raises(
            ValueError, match=r"metrics\['accuracy'\] \(posterior: .*\) must be a number that was measured"
        ):
            config().push_config_to_hub("me/recipe", metrics={"accuracy": {"posterior": value}})


def test_a_readme_of_ones_own_is_kept(hub):
    hub.put("me/recipe", README__md="---\nlicense: mit\ntags:\n- math\n---\n\n# Mine\n\nAbout | this.\n")
    config().push_config_to_hub("me/recipe", description="first")
    config().push_config_to_hub("me/recipe", description="second \\1")
    content = hub.files("me/recipe")["README.md"].decode()
    assert ModelCard(content).data.tags == ["math", "trl", "grpo", "knapsack-rl"]
    assert ModelCard(content).data.license == "mit"
    assert "# Mine\n\nAbout | this.\n" in content
    assert content.count("## Configuration for Knapsack GRPO") == 1
    assert "second \\1" in content and "first" not in content


# ---------------------------------------------------------------------------------------------------- success rates


def run_of(model, out, **options):
    defaults = {"num_generations": 4, "per_device_train_batch_size": 16, "max_completion_length": 6, "max_steps": 2}
    defaults |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    args = KnapsackGRPOConfig(
        **{"output_dir": str(out), **defaults, **CPU, "gradient_checkpointing": False, **options}
    )
    return KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(16))


def test_success_rates_are_published_and_used(hub, model, tmp_path, caplog):
    trainer = run_of(model, tmp_path / "first", prompt_id_column="name")
    trainer.train()
    trainer.args.push_config_to_hub(
        "me/recipe",
        script_args=[ScriptArguments(dataset_name="owner/data"), ModelConfig(model_name_or_path="owner/model")],
        success_state=tmp_path / "first",
    )
    files = hub.files("me/recipe")
    assert set(files) == {"knapsack_config.yaml", "knapsack_state.json", "knapsack_state.safetensors", "README.md"}
    assert 'args.success_state_path = "me/recipe"' in files["README.md"].decode()
    info = json.loads(files["knapsack_state.json"])
    assert info.pop("num_prompts") == len(trainer.success_tracker) > 0
    assert info == {
        "dataset_name": "owner/data",
        "dataset_config": None,
        "dataset_train_split": "train",
        "model_name_or_path": "owner/model",
        "model_revision": "main",
        "prompt_id_column": "name",
        "success_threshold": 0.5,
        "success_reward_func": None,
    }
    published = tmp_path / "published.safetensors"
    published.write_bytes(files["knapsack_state.safetensors"])
    tracker = SuccessRateTracker()
    tracker.load(published)
    assert tracker.keys == trainer.success_tracker.keys

    caplog.clear()
    second = run_of(model, tmp_path / "second", prompt_id_column="name", success_state_path="me/recipe")
    keys = second.success_tracker.keys
    assert keys == tracker.keys
    for name, array in second.success_tracker.state_dict().items():
        np.testing.assert_array_equal(array, tracker.state_dict()[name])
    assert not [record for record in caplog.records if record.name.startswith("trl_knapsack")]

    run_of(model, tmp_path / "third", success_state_path="me/recipe@main", success_threshold=0.7)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert (
        "The success rates in me/recipe@main were kept differently: prompt_id_column 'name' there, None here; "
        "success_threshold 0.5 there, 0.7 here." in said
    )
    assert "is known in me/recipe@main, which are of owner/data, split train; is it of this dataset" in said


def test_success_rates_that_are_of_nothing(hub, tmp_path):
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    tracker.save(tmp_path / "knapsack_state.safetensors")
    with pytest.raises(ValueError, match="Nothing says which dataset the success rates in .* are"):
        config().push_config_to_hub("me/recipe", success_state=tmp_path)
    with pytest.raises(FileNotFoundError, match="knapsack_state.safetensors does not exist, so .*; name a folder"):
        config().push_config_to_hub("me/recipe", success_state=tmp_path / "nothing" / "knapsack_state.safetensors")
    assert hub.requests == []


INFO = {
    **{"dataset_name": "owner/data", "dataset_config": None, "dataset_train_split": "train", "num_prompts": 1},
    **{"model_name_or_path": None, "model_revision": None, "prompt_id_column": "name", "success_threshold": 0.5},
    "success_reward_func": None,
}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config__json": "{}"}, "me/recipe has no knapsack_state.safetensors"),
        (
            {"knapsack_state__safetensors": b"\x80\x04."},
            "knapsack_state.safetensors is not a readable success-rate state",
        ),
        (
            {"knapsack_state__safetensors": None, "knapsack_state__json": "[]"},
            "knapsack_state.json of me/recipe must be a JSON object",
        ),
        (
            {"knapsack_state__safetensors": None, "knapsack_state__json": "{}"},
            "knapsack_state.json of me/recipe must be a JSON object",
        ),
        (
            {"knapsack_state__safetensors": None, "knapsack_state__json": "[" * 9000},
            "knapsack_state.json of me/recipe must be a JSON object",
        ),
        (
            {
                "knapsack_state__safetensors": None,
                "knapsack_state__json": json.dumps(INFO | {"dataset_name": ["\x1b["]}),
            },
            r"dataset_name in knapsack_state.json of me/recipe must be a text, but is \['.x1b\['\]",
        ),
        (
            {
                "knapsack_state__safetensors": None,
                "knapsack_state__json": json.dumps(INFO | {"success_threshold": "0.x"}),
            },
            "success_threshold in knapsack_state.json of me/recipe must be a number, but is '0.x'",
        ),
        (
            {"knapsack_state__safetensors": None, "knapsack_state__json": json.dumps(INFO | {"more": 1})},
            "knapsack_state.json of me/recipe must be a JSON object",
        ),
    ],
)
def test_success_rates_that_are_unfit(hub, model, tmp_path, files, message):
    tracker = SuccessRateTracker()
    tracker.save(tmp_path / "state.safetensors")
    sound = (tmp_path / "state.safetensors").read_bytes()
    hub.put("me/recipe", **{name: sound if content is None else content for name, content in files.items()})
    with pytest.raises((OSError, ValueError), match=message):
        run_of(model, tmp_path / "out", success_state_path="me/recipe")


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_success_rates_that_are_no_counts(hub, model, tmp_path, value):
    tracker = SuccessRateTracker()
    tracker.observe(["a", "b"], [1, 1], [2, 2])
    tracker._arrays["failures"][1] = value  # with a digest that is right
    tracker.save(tmp_path / "state.safetensors")
    hub.put("me/recipe", knapsack_state__safetensors=(tmp_path / "state.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match="knapsack_state.safetensors .*field 'failures' has values that are not finite, or negative"
    ):
        run_of(model, tmp_path / "out", success_state_path="me/recipe")


def test_success_rates_that_are_too_many(hub, model, tmp_path, monkeypatch):
    tracker = SuccessRateTracker()
    tracker.observe([str(i) for i in range(10_000)], [1] * 10_000, [2] * 10_000)
    tracker.save(tmp_path / "state.safetensors")
    hub.put("me/recipe", knapsack_state__safetensors=(tmp_path / "state.safetensors").read_bytes())
    monkeypatch.setattr("trl_knapsack.hub.states.MAX_STATE_BYTES", 10_000 * 48)
    with pytest.raises(ValueError, match="knapsack_state.safetensors of me/recipe has [0-9]+ bytes, more than 480000"):
        run_of(model, tmp_path / "out", success_state_path="me/recipe")
    monkeypatch.setattr("trl_knapsack.hub.states.MAX_STATE_BYTES", 10_000 * 48 + 200_000)
    assert len(run_of(model, tmp_path / "out", success_state_path="me/recipe").success_tracker) == 10_000


def test_a_strangers_words_forge_no_log_line(hub, model, tmp_path, caplog):
    tracker = SuccessRateTracker()
    tracker.observe(["elsewhere"], [1], [2])
    tracker.save(tmp_path / "state.safetensors")
    said = {
        "dataset_name": "data\n2026-01-01 ERROR: \x1b[31mremove / now",
        "dataset_train_split": "\u202e" + "x" * 9000,
    }
    hub.put(
        "them/theirs",
        knapsack_state__safetensors=(tmp_path / "state.safetensors").read_bytes(),
        knapsack_state__json=json.dumps(INFO | said),
    )
    run_of(model, tmp_path / "out", prompt_id_column="name", success_state_path="them/theirs")
    (line,) = [record.getMessage() for record in caplog.records if "is known in" in record.getMessage()]
    assert line.isprintable() and len(line) < 1000
    assert r"which are of data\n2026-01-01 ERROR: \x1b[31mremove / now, split \u202exxx" in line


def test_the_folder_of_a_run_will_do(model, tmp_path):
    """Where a run was stopped, and left its success rates in checkpoints alone."""
    tracker = SuccessRateTracker()
    for step, key in ((9, "older"), (10, "newest")):
        (tmp_path / "outputs" / f"checkpoint-{step}").mkdir(parents=True)
        tracker.observe([key], [1], [2])
        tracker.save(tmp_path / "outputs" / f"checkpoint-{step}" / "knapsack_state.safetensors")
    trainer = run_of(model, tmp_path / "out", success_state_path=str(tmp_path / "outputs"))
    assert trainer.success_tracker.keys == ("older", "newest")
    # A run that is resumed goes on with its checkpoint's own, whatever else is beside it.
    trainer.success_rate_callback.load(tmp_path / "outputs" / "checkpoint-9")
    assert trainer.success_tracker.keys == ("older",)
    (tmp_path / "outputs" / "checkpoint-11").mkdir()
    with pytest.raises(
        MissingFileError, match="checkpoint-11 holds no .*; name .* To resume without them, set resume_suc"
    ):
        trainer.success_rate_callback.load(tmp_path / "outputs" / "checkpoint-11")


def test_the_folder_of_a_run_is_published(hub, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    tracker = SuccessRateTracker()
    tracker.save(tmp_path / "checkpoint-2" / "knapsack_state.safetensors")
    script_args = [ScriptArguments(dataset_name="owner/data")]
    config().push_config_to_hub("me/recipe", script_args=script_args, success_state=tmp_path)
    assert "knapsack_state.safetensors" in hub.files("me/recipe")


def test_a_folder_of_that_name_comes_first(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = SuccessRateTracker()
    tracker.observe(["local"], [1], [2])
    (tmp_path / "me" / "recipe").mkdir(parents=True)
    tracker.save(tmp_path / "me" / "recipe" / "knapsack_state.safetensors")
    trainer = run_of(model, tmp_path / "out", success_state_path="me/recipe")
    assert trainer.success_tracker.keys == ("local",)
    assert hub.requests == []
