"""What the pages say is what the code does."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shutil
import textwrap
from dataclasses import MISSING, fields, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_chat
from histories import record_by_hand
from snippets import ROOT, blocks, check_command, commands, load_dataset, run_python, sessions, train_bundled
from trl import GRPOConfig

import trl_knapsack
from trl_knapsack import KnapsackGRPOConfig
from trl_knapsack.cli import build_parser, main
from trl_knapsack.tracking import DifficultyPrior


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}, link


@pytest.fixture(scope="module")
def clone(tmp_path_factory, chat_model) -> Path:
    """What the pages take for granted: a clone of the repository, in which the bundled example and other runs ended."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("examples", "benchmarks", "trl_knapsack"):
        (folder / name).symlink_to(ROOT / name)
    train_bundled(folder)
    train_bundled(folder, "--allocation", "uniform")
    recipe = [
        "model_name_or_path: examples/math_policy",
        "dataset_name: examples/math_problems",
        "use_cpu: true",
        "bf16: false",
    ]
    (folder / "recipe.yaml").write_text("\n".join(recipe))
    for run in ("run", "other-run"):
        shutil.copytree(chat_model, folder / "outputs" / run)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    return tiny_chat.save_model(tmp_path_factory.mktemp("chat_model"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_snippets_run_in_their_order(page, clone, chat_model, monkeypatch, request):
    if page.name == "hub.md":
        request.getfixturevalue("hub")
    monkeypatch.chdir(clone)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    namespace = {"__name__": "__main__"}
    for code, printed in blocks(page, "python"):
        text = run_python(code, namespace, chat_model)
        assert not printed or text.strip() == printed.strip()


def test_the_script_of_the_migration_runs_before_and_after(clone, chat_model, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    ((diff, _),) = blocks(ROOT / "docs" / "migrating.md", "diff")
    for without in "+-":
        namespace = {}
        run_python("\n".join(line[1:] for line in diff.splitlines() if line[0] != without), namespace, chat_model)
        assert type(namespace["trainer"]).__name__ == {"+": "GRPOTrainer", "-": "KnapsackGRPOTrainer"}[without]
        assert namespace["trainer"].state.global_step == 1


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name)
def test_commands_exist_with_their_flags(page, clone, monkeypatch):
    monkeypatch.chdir(clone)
    for block, _ in blocks(page, "bash"):
        for words in commands(block):
            check_command(words)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=name)
def test_sessions_print_what_the_page_says(page, clone, monkeypatch, capsys):
    """What is deterministic and quick is run, mistakes included; of the rest the flags are checked."""
    monkeypatch.chdir(clone)
    for block, _ in blocks(page, "console"):
        for words, printed in sessions(block):
            if words[0] == "cat":
                Path(words[1]).write_text(printed)
            elif words[:2] == ["trl-knapsack", "allocate"] or printed.startswith("trl-knapsack train: "):
                capsys.readouterr()
                main(words[1:])
                assert "".join(capsys.readouterr()).split() == printed.split()
            elif words[0] == "trl-knapsack" and words[1] != "train":
                build_parser().parse_args(words[1:])
            else:
                check_command(words)


MODULES = [module.name for module in pkgutil.walk_packages(trl_knapsack.__path__, "trl_knapsack.")]


PUBLIC = [
    *("allocation", "errors", "evaluation", "experimental", "hub", "reporting", "simulation", "tracking", "training")
]


class FencedExamples(doctest.DocTestParser):
    """`>>>` in a Markdown fence: else the closing fence is read as output."""

    def get_examples(self, string, name="<string>"):
        return super().get_examples(re.sub(r"^ *```.*$", "", string, flags=re.MULTILINE), name)


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__main__")])
def test_examples_in_docstrings(module, clone, chat_model, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    module = importlib.import_module(module)
    for test in doctest.DocTestFinder(parser=FencedExamples()).find(module):
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0
        namespace = {"__name__": "__main__"}
        for block in re.findall(r"```python\n(.*?)```", inspect.cleandoc(test.docstring), re.DOTALL):
            code = textwrap.dedent(block)
            if code.startswith(("from", "import")) and ">>>" not in code:
                run_python(code, namespace, chat_model)
            elif ">>>" not in code:  # a fragment
                compile(code, test.name, "exec")


def test_the_api_page_names_what_is_public_and_nothing_else():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert "automodule" not in page  # it would bring names along that the page does not show
    said, module = {}, None
    for directive, argument in re.findall(r"^\.\. (\w+):: ([\w.]+)", page, re.MULTILINE):
        if directive == "currentmodule":
            module = argument
        else:
            assert argument not in said, argument
            said[argument] = getattr(importlib.import_module(module), argument)
    public = {}
    for package in ["", *PUBLIC]:
        module = importlib.import_module(f"trl_knapsack{package and '.'}{package}")
        public |= {name: getattr(module, name) for name in module.__all__}
    assert said.keys() == public.keys()
    assert all(said[name] is public[name] for name in said)


def test_whatever_has_public_names_says_so():
    modules = {name.split(".")[1] for name in MODULES if name.count(".") == 1 and not name.endswith("__main__")}
    assert {name for name in modules if hasattr(importlib.import_module(f"trl_knapsack.{name}"), "__all__")} == set(
        PUBLIC
    )


def test_the_page_names_every_lower_bound():
    """What `setup.py` declares, and the version that `constraints.txt` names, as far as it does."""
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8").split("## Lower bounds")[1]
    said = {name: cells for name, *cells in re.findall(r"^\| (\w+) \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)[1:]}
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    declared = dict(re.findall(r'"([\w-]+)(?:>=)?([\d.]*)"', setup.split("install_requires=[")[1].split("]")[0]))
    assert said.keys() == declared.keys()
    tested = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for name, (bound, version) in said.items():
        assert declared[name] == (bound if bound[0].isdigit() else ""), name
        assert tested.get(name, version).startswith(version), name


def test_every_option_is_described_with_its_default():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").split("Two of TRL's options")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", page, re.MULTILINE))
    own = {f.name: f for f in fields(KnapsackGRPOConfig) if f.name not in {g.name for g in fields(GRPOConfig)}}
    assert said.keys() == own.keys()
    for name, field in own.items():
        default = field.default_factory() if field.default is MISSING else field.default
        if default is not None:  # what None stands for is said in words
            assert said[name].strip("`") == str(default).replace("posterior", '"posterior"'), name


def test_every_metric_is_described():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = set()
    for cell in re.findall(r"^\| (`knapsack/[^|]*) \|", page, re.MULTILINE):
        first, *others = re.findall(r"`([^`]*)`", cell)
        said |= {first, *(first.rsplit("/", 1)[0] + other for other in others)}
    record = record_by_hand()
    after_a_look = replace(record, before=np.ones(len(record.keys), dtype=np.int64))
    prior = DifficultyPrior(["level"])
    prior.observe(prior.features([{"level": 1}, {"level": 2}]), np.array([1, 3]), np.array([4, 4]))
    assert said == record.metrics().keys() | after_a_look.metrics().keys() | prior.metrics().keys()
