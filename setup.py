import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
REPOSITORY = ""  # the public address, once there is one: https://github.com/owner/name
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "trl_knapsack" / "__init__.py").read_text())[1]

EXTRAS = {
    "vllm": ["vllm"],
    "math": ["math-verify>=0.5.2"],
    "plots": ["matplotlib"],
    "genetic": ["pymoo"],
    "reasoning-gym": ["reasoning-gym>=0.1.25"],  # not in dev: one of its dependencies has to be compiled
    "docs": ["sphinx", "myst-parser>=5", "furo"],
    "release": ["build", "twine"],
}
EXTRAS["dev"] = [
    *EXTRAS["math"],
    *EXTRAS["plots"],
    *EXTRAS["genetic"],
    "basedpyright",
    "hypothesis",
    "ipykernel",  # with nbclient, runs the notebook
    "nbclient",
    "optuna",
    "pre-commit",
    "pytest",
    "ruff",
    "tensorboard",
]


def long_description() -> str:
    """The README; its relative links and images lead to the repository, since a package index has neither docs nor figures."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    relative = r"\]\((?!https?:|#)([^)]+)\)"
    text = re.sub(r"(!\[[^]]*)" + relative, rf"\1]({REPOSITORY}/raw/v{VERSION}/\2)", text)
    return re.sub(relative, rf"]({REPOSITORY}/blob/v{VERSION}/\1)", text)


setup(
    name="trl-knapsack",
    version=VERSION,
    description="Knapsack GRPO for TRL: per-prompt rollout budgets for the trainer you already use",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url=REPOSITORY or None,
    project_urls={"Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md", "Issues": f"{REPOSITORY}/issues"}
    if REPOSITORY
    else {},
    author="The trl_knapsack authors",
    keywords="grpo trl reinforcement-learning llm rollout budget knapsack",
    packages=find_packages(include=["trl_knapsack", "trl_knapsack.*"]),
    # the folders of metrics are no packages: evaluate.load opens their scripts by path
    package_data={
        "trl_knapsack": ["py.typed"],
        "trl_knapsack.evaluation.metrics": ["*/*"],
        "trl_knapsack.hub": ["templates/*.md"],
        "trl_knapsack.reporting": ["report.html"],
    },
    exclude_package_data={"": ["__pycache__/*"]},
    entry_points={"console_scripts": ["trl-knapsack = trl_knapsack.cli:main"]},
    python_requires=">=3.11",
    # torch is left to trl and accelerate; constraints.txt names the tested versions.
    install_requires=[
        "trl>=1.6,<1.17",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "numba>=0.61",
        "numpy>=2",
        "scipy",
        "evaluate",
        "filelock>=3.12",
        "rich",
        "huggingface_hub>=1.0",  # with httpx, whose errors are told apart
        "jinja2>=3",  # README files on the Hub
        "packaging>=20",
        "psutil",
        "pyyaml>=6.0.1",
        "safetensors>=0.4.3",
        "tqdm>=4.60",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
