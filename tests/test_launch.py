"""The accelerate configs, as accelerate itself reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env


CONFIGS = Path(__file__).parent.parent / "examples" / "accelerate_configs"

# What accelerate makes of each: (MULTI_GPU, FSDP, DeepSpeed stage, CPU, machines, more than one process).
MEANT = {
    "single_gpu": (False, False, None, False, 1, False),
    "multi_gpu": (True, False, None, False, 1, True),
    "multi_node": (True, False, None, False, 2, True),
    "fsdp2": (False, True, None, False, 1, True),
    "deepspeed_zero2": (False, False, 2, False, 1, True),
    "deepspeed_zero3": (False, False, 3, False, 1, True),
    "cpu": (False, False, None, True, 1, False),
}


def launch_arguments(name):
    """What `accelerate launch --config_file` runs with."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py"])
    return _validate_launch_command(arguments)[0]


def test_every_config_is_listed():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(MEANT)
    readme = (CONFIGS / "README.md").read_text()
    assert all(f"[{name}.yaml]({name}.yaml)" in readme for name in MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_accelerate_reads_each_as_it_is_meant(name):
    load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # unknown keys are an error
    args = launch_arguments(name)
    stage = args.zero_stage if args.use_deepspeed else None
    assert (
        args.multi_gpu,
        args.use_fsdp,
        stage,
        args.use_cpu,
        args.num_machines,
        args.num_processes > 1,
    ) == MEANT[name]
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    if args.use_fsdp:
        environment = prepare_multi_gpu_env(args)
        assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
        assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"  # vLLM and a resumed run read whole weights
