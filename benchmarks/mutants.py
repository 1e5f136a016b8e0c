"""
Would a test notice? Draws mutants of this package at random, lets mutmut run the tests that reach them, and prints the rates and the
survivors. Works on a copy of what git has committed. Needs `pip install mutmut==3.8.1`; takes about forty minutes of one core.

    python benchmarks/mutants.py
"""

import argparse
import ast
import copy
import difflib
import functools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import binomtest


# Modules, the tests that are about them, and how many mutants are drawn; all of them would take hours.
GROUPS = {
    "kernels": (
        "allocation/kernels.py",
        [f"tests/allocation/test_{name}.py" for name in ("costs", "exact", "kernels", "tables", "values")],
        30,
    ),
    "the rest of allocation": ("allocation/[!k]*.py", ["tests/allocation"], 30),
    "tracker": ("tracking/tracker.py", ["tests/test_tracker.py"], 40),
    "plan": ("training/plan.py", ["tests/test_records.py"], 40),
    "advantages": ("training/advantages.py", ["tests/test_advantages.py"], 40),
    "checkpoints": (
        "training/checkpoints.py",
        ["tests/test_checkpoints.py", "tests/test_trainer.py::test_a_resumed_run_goes_on_as_if_it_had_not_stopped"],
        15,
    ),
}


def copy_to(folder: Path, modules: str, tests: list[str]) -> None:
    """The last commit, set up for these modules and tests, with kernels that mutmut changes: a decorator keeps it away."""
    archive = subprocess.run(["git", "archive", "HEAD"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    for file, pattern, instead in (
        (
            "trl_knapsack/allocation/kernels.py",
            r"@Compiled\n(def (\w+)\(.*?\n)(?=\n\n|\Z)",
            r"\1\n\n\2 = Compiled(\2)\n",
        ),
        ("pyproject.toml", r"(only_mutate =) \[.*?\]", rf"\1 {json.dumps([f'trl_knapsack/{modules}'])}"),
        ("pyproject.toml", r"(test_selection =) \[.*?\]", rf"\1 {json.dumps(tests)}"),
    ):
        text, changed = re.subn(pattern, instead, (folder / file).read_text(), flags=re.S)
        assert changed, pattern
        (folder / file).write_text(text)


def mutmut(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def statuses(folder: Path) -> dict[str, str]:
    lines = mutmut(folder, "results", "--all", "true").stdout.splitlines()
    return dict(line.strip().split(": ") for line in lines if "__mutmut_" in line)


class WithoutMessages(ast.NodeTransformer):
    """Takes the text out of what is raised or warned."""

    within = False

    def visit(self, node):
        outside = self.within
        self.within |= isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
        )
        node = super().visit(node)
        if (
            self.within
            and isinstance(node, ast.JoinedStr | ast.Constant)
            and isinstance(getattr(node, "value", ""), str)
        ):
            node = ast.Constant("")
        self.within = outside
        return node


@functools.cache
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def compared(folder: Path, mutant: str) -> tuple[str, bool]:
    """What the mutant changes, and whether that is only the text of a message."""
    module, name = mutant.rsplit(".", 1)
    found = functions(folder / "mutants" / f"{module.replace('.', '/')}.py")
    pair = [copy.deepcopy(found[of]) for of in (name.rsplit("__mutmut_", 1)[0] + "__mutmut_orig", name)]
    for node in pair:
        node.name = "f"
    before, after = (ast.unparse(node).splitlines() for node in pair)
    diff = [line for line in difflib.unified_diff(before, after, n=0) if line[:2] not in ("++", "--", "@@")]
    return "\n".join(diff), len({ast.dump(WithoutMessages().visit(node)) for node in pair}) == 1


def survives(status: str) -> bool:
    return status not in ("killed", "timeout")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()

    rows = []
    for group in options.only:
        modules, tests, number = GROUPS[group]
        with tempfile.TemporaryDirectory(prefix="mutants-") as name:
            folder = Path(name)
            copy_to(folder, modules, tests)
            mutmut(folder, "run", PYTEST_ADDOPTS="-k no_test_has_this_name")  # makes the mutants, and stops there
            names = sorted(statuses(folder))
            drawn = sorted(random.Random(f"{options.seed} {group}").sample(names, min(number, len(names))))
            run = mutmut(folder, "run", "--max-children", "1", *drawn)
            if run.returncode:
                sys.exit(run.stdout[-3000:] + run.stderr)
            status = statuses(folder)
            changes = {mutant: compared(folder, mutant) for mutant in drawn}
        rows.append([group, len(names), [(survives(status[mutant]), changes[mutant][1]) for mutant in drawn]])
        for mutant in filter(lambda mutant: survives(status[mutant]), drawn):
            diff, is_text = changes[mutant]
            print(f"{mutant}: {'a text that ' if is_text else ''}{status[mutant]}\n{diff}\n", flush=True)

    print("| | mutants | drawn | killed | | 95 % | without texts |\n|---|---|---|---|---|---|---|")
    for group, number, mutants in [*rows, ["all", sum(row[1] for row in rows), sum((row[2] for row in rows), [])]]:
        killed = sum(not alive for alive, _ in mutants)
        low, high = binomtest(killed, len(mutants)).proportion_ci(method="wilson")
        others = [alive for alive, is_text in mutants if not is_text]
        print(
            f"| {group} | {number} | {len(mutants)} | {killed} | {killed / len(mutants):.0%} | {low:.0%} to {high:.0%} "
            f"| {len(others) - sum(others)} of {len(others)} |"
        )


if __name__ == "__main__":
    main()
