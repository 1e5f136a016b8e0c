"""The folders of the package are its layers: imports point down only, and the architecture page says the same."""

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trl_knapsack"
HEAVY = {"torch", "trl", "transformers", "accelerate", "datasets", "pymoo", "matplotlib"}


def layers() -> dict[str, tuple[int, set[str]]]:
    """Folder or module -> its layer and what it may load, from the table of docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    found = {}
    for number, names, loads in re.findall(r"^\| (\d) \| ([^|]*) \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)/?`", names):
            found[name] = (int(number), set(re.findall(r"\w+", loads)))
    return found


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path):
    """Modules of the package that a file imports, wherever in it, as dotted names."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield ".".join([*base, node.module] if node.module else [*base, node.names[0].name])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl_knapsack"):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("trl_knapsack"))


def test_the_page_names_every_folder():
    present = {p.name if p.is_dir() else p.stem for p in PACKAGE.iterdir() if p.is_dir() or p.suffix == ".py"}
    assert present - {"__pycache__", "__init__", "__main__"} - {"_lazy", "_notebook"} == set(layers())


def test_imports_point_down():
    of = layers()
    checked = 0
    for file in PACKAGE.rglob("*.py"):
        folder = folder_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if folder not in of:  # the package's own __init__ and __main__
            continue
        for module in imports(file):
            target = folder_of(module)
            if target in of and target != folder:
                assert of[target][0] < of[folder][0], (
                    f"{file.relative_to(ROOT)} imports {module}, which is not below it"
                )
                checked += 1
    assert checked > 30


def path_of(start: str) -> list[str]:
    """The calls that the page names on the path that begins with `start`."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    return re.findall(r"`(\w+)`", re.search(rf"^\| {start} \| \w+ \| (.*) \|$", text, re.MULTILINE)[1])


@pytest.mark.parametrize("start", ["evidence", "rewards"])
def test_the_paths_name_what_is_there(start):
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")]
    defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert len(path_of(start)) > 4 and set(path_of(start)) <= defined


def test_the_path_from_evidence_to_counts_is_the_one_on_the_page(monkeypatch):
    """Who called whom when the kernel is reached; the rule itself is no name on the page."""
    from trl_knapsack.allocation import BetaBeliefs, Evidence, PosteriorRule, selection
    from trl_knapsack.allocation.looks import BatchSharing
    from trl_knapsack.training.decision import decide

    called = []

    def collect(*args):
        frame = sys._getframe()
        names = []
        while frame and "decide" not in names:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        called.append([name for name in reversed(names) if name != "__call__"])
        return kernel(*args)

    kernel = selection.collect
    monkeypatch.setattr(selection, "collect", collect)
    beliefs, none = BetaBeliefs([1.0, 3.0, 6.0], [5.0, 3.0, 1.0]), np.zeros(3, int)
    evidence = Evidence(("a", "b", "c"), beliefs.alpha, beliefs.beta, beliefs.mean, none + 1, none + 1.0)
    one_rank = SimpleNamespace(is_main_process=True, num_processes=1)
    decide(BatchSharing(PosteriorRule(), 2, 20), evidence, none, 3, 24, 0, one_rank)
    assert called == [path_of("evidence")]


def test_a_decision_holds_what_the_page_says():
    from trl_knapsack.training.decision import Decision

    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    said = re.search(r"one frozen `Decision`:(.*?)\.\n", text, re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", said) == [field.name for field in fields(Decision)]


def test_every_folder_says_what_it_is_for():
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


@pytest.mark.parametrize(
    "name", ["", *(name for name, (_, loads) in layers().items() if not loads & {"torch", "trl"})]
)
def test_lower_layers_load_neither_torch_nor_trl(name):
    """Every module of the folder, in a fresh process."""
    target = PACKAGE / name
    files = sorted(target.rglob("*.py")) if name and target.is_dir() else [PACKAGE / f"{name or '__init__'}.py"]
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for f in files
        if "metrics" not in f.parts and f.stem != "training_script"
    ]
    code = f"import sys, {', '.join(modules)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]", modules


def test_setup_declares_what_is_imported():
    theirs = {"torch", "wandb", "trackio", "markupsafe"}  # of trl, jinja2, and whoever logs there
    setup = (ROOT / "setup.py").read_text(encoding="utf-8").lower()
    declared = {"yaml" if name == "pyyaml" else name for name in re.findall(r'"([a-z][\w-]*)', setup)}
    imported = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    missing = imported - set(sys.stdlib_module_names) - theirs - {"trl_knapsack"}
    assert {name for name in missing if name.replace("_", "-") not in {d.replace("_", "-") for d in declared}} == set()
    assert "safetensors" in missing


def test_tests_share_helpers_not_each_other():
    """What two test modules need is in a module of its own, such as `runs`."""
    tests = ROOT / "tests"
    for file in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            from_tests = [name for name in named if name.split(".")[-1].startswith("test_")]
            assert from_tests == [], f"{file.relative_to(ROOT)} imports {from_tests[0]}"
