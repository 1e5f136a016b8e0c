"""The wheel and the sdist, built from what git holds and installed where there is nothing else."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from trl_knapsack import __version__


ROOT = Path(__file__).parent.parent
WHEEL, SDIST = f"trl_knapsack-{__version__}-py3-none-any.whl", f"trl_knapsack-{__version__}.tar.gz"

pytestmark = pytest.mark.slow

# Nothing that leads to a source tree, or to packages of another environment.
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command, env=None, **kwargs) -> str:
    done = subprocess.run(
        [str(word) for word in command], env=env, capture_output=True, text=True, timeout=900, **kwargs
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def digests(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What `make release` builds, in a copy of the repository with the litter of use in it."""
    source = tmp_path_factory.mktemp("source")
    for file in run("git", "ls-files", cwd=ROOT).splitlines():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    for litter in ("__pycache__/kernels.nbi", "evaluation/metrics/__pycache__/__init__.cpython-311.pyc"):
        (source / "trl_knapsack" / litter).parent.mkdir(exist_ok=True)
        (source / "trl_knapsack" / litter).touch()
    run(sys.executable, "-m", "build", cwd=source)  # the wheel from the sdist
    run(sys.executable, "-m", "build", "--wheel", "--outdir", "from_tree", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    """Programs of a new environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt"]
    run(*pip, "torch", env=CLEAN)
    run(*pip, dist / WHEEL, env=CLEAN)
    return folder / "bin"


@pytest.fixture
def clean(tmp_path, installed) -> dict:
    """An empty folder to be in."""
    return dict(cwd=tmp_path, env={**CLEAN, "NUMBA_CACHE_DIR": str(installed.parent), "PYTHONWARNINGS": "ignore"})


def test_the_wheel_holds_what_git_holds(dist):
    names = {name for name in digests(dist / WHEEL) if ".dist-info/" not in name}
    files = (path for path in (dist.parent / "trl_knapsack").rglob("*") if path.is_file())
    assert names == {str(path.relative_to(dist.parent)) for path in files if "__pycache__" not in path.parts}


def test_the_sdist_builds_the_same_wheel_as_the_repository(dist):
    assert digests(dist / WHEEL) == digests(dist.parent / "from_tree" / WHEEL)


def test_the_sdist_is_lean(dist):
    with tarfile.open(dist / SDIST) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "setup.py", "trl_knapsack/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples")) or "__pycache__" in name]


def test_the_index_would_take_them(dist):
    run(sys.executable, "-m", "twine", "check", "--strict", dist / WHEEL, dist / SDIST)


def test_every_module_can_be_imported_without_extras(installed, clean):
    code = """
import importlib, pkgutil, sys, trl_knapsack
assert trl_knapsack.__file__.startswith(sys.prefix), trl_knapsack.__file__
for name in trl_knapsack.__all__:
    getattr(trl_knapsack, name)
for module in pkgutil.walk_packages(trl_knapsack.__path__, "trl_knapsack."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(importlib.metadata.version("trl-knapsack"))
"""
    assert run(installed / "python", "-c", code, **clean).split()[-1] == __version__


def test_the_allocator_and_the_command_line(installed, clean):
    code = "from trl_knapsack import allocate; print(allocate([0.0, 0.1, 0.4, 0.9, 1.0], budget=40).counts)"
    assert run(installed / "python", "-c", code, **clean) == "[ 2 24  9  3  2]\n"
    assert "allocate" in run(installed / "trl-knapsack", "--help", **clean)
    assert __version__ in run(installed / "trl-knapsack", "--version", **clean)


def test_the_bundled_example_trains(installed, clean):
    flags = ["--max_steps", "2", "--num_eval_problems", "8", "--per_device_train_batch_size", "16"]
    printed = run(installed / "python", ROOT / "examples" / "train_math.py", *flags, **clean)
    assert "held-out accuracy" in printed
    assert (clean["cwd"] / "outputs" / "train_math-posterior" / "knapsack_state.safetensors").is_file()


def test_metrics_are_found_by_evaluate(installed, clean):
    code = """
from pathlib import Path
import evaluate
import trl_knapsack.evaluation.metrics as metrics
folders = [folder for folder in Path(metrics.__file__).parent.iterdir() if (folder / f"{folder.name}.py").is_file()]
assert folders
for folder in folders:
    evaluate.load(str(folder))
"""
    run(installed / "python", "-c", code, **{**clean, "env": {**clean["env"], "HF_HOME": str(clean["cwd"])}})
