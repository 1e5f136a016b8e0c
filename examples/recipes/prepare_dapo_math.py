# /// script
# dependencies = [
#     "datasets",
# ]
# ///

r"""
Write DAPO-Math-17k as `train_math.py` reads it: one row a problem, a conversation as `prompt`, the answer as `solution`.

    python examples/recipes/prepare_dapo_math.py data/dapo_math

The published file holds every problem a hundred times, in a frame that asks for a last line `Answer: ...`, which
math-verify does not read. `open-r1/DAPO-Math-17k-Processed` holds each once; a frame that is left is taken off, and the
answer is asked for in \boxed{}, as Qwen2.5-Math's own template does.
"""

import re
import sys

from datasets import DatasetDict, load_dataset


NAME = "open-r1/DAPO-Math-17k-Processed"
FRAME = re.compile(
    r"\ASolve the following math problem step by step\..*?\n\n|\s*\n\nRemember to put your answer.*\Z", re.DOTALL
)
REQUEST = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def conversation(row: dict) -> dict:
    question = FRAME.sub("", row["prompt"]).strip()
    return {"prompt": [{"role": "user", "content": question + REQUEST}], "solution": str(row["solution"])}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(f"Usage: {sys.argv[0]} FOLDER [DATASET]; DATASET is {NAME} unless given.")
    name = sys.argv[2] if len(sys.argv) == 3 else NAME
    rows = load_dataset(name, "all" if name == NAME else None, split="train")
    problems = rows.map(conversation, remove_columns=[c for c in rows.column_names if c not in ("prompt", "solution")])
    DatasetDict(train=problems).save_to_disk(sys.argv[1])
    print(f"{len(problems)} problems in {sys.argv[1]}")


if __name__ == "__main__":
    main()
