"""
The table of docs/reliability.md, from the results of the long profile.

    python benchmarks/faults/table.py
"""

import argparse
import json
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).resolve().parent / "results" / "long.json"
TRAINERS = {"knapsack": "`KnapsackGRPOTrainer`", "grpo": "TRL's `GRPOTrainer`"}


def table(outcomes: list[dict[str, Any]]) -> str:
    """Scenarios in rows, one cell for each trainer: how many tests ended how."""
    trainers = [name for name in TRAINERS if any(o["trainer"] == name for o in outcomes)]
    lines = ["| | " + " | ".join(TRAINERS[t] for t in trainers) + " |", "|---" * (1 + len(trainers)) + "|"]
    for scenario in dict.fromkeys(o["scenario"] for o in outcomes):
        cells = [_cell([o for o in outcomes if (o["scenario"], o["trainer"]) == (scenario, t)]) for t in trainers]
        lines.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(outcomes: list[dict[str, Any]]) -> str:
    if not outcomes:
        return "-"
    said = []
    for verdict in sorted({o["verdict"] for o in outcomes}, key=lambda v: (v.isupper(), v)):
        number = sum(o["checks"] for o in outcomes if o["verdict"] == verdict)
        said.append(f"{number:,} **{verdict}**" if verdict.isupper() else f"{number:,} {verdict}")
    kills, refused = (sum(o[name] for o in outcomes) for name in ("kills", "begun_anew"))
    if kills:
        said.append(f"{kills} kills")
    if refused:
        said.append(f"{refused} starts {'refused' if outcomes[0]['trainer'] == 'knapsack' else 'failed'}")
    return ", ".join(said)


def heading(results: dict[str, Any]) -> str:
    """The command, commit and date of the results, and with what they were made."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"`{results['command']}`, commit {results['commit']}, {results['date']}, {versions}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    results = json.loads(parser.parse_args().results.read_text())
    print(heading(results) + "\n\n" + table(results["outcomes"]))


if __name__ == "__main__":
    main()
