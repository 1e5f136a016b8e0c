import os


# One thread: the models are tiny, and results do not depend on how many cores a machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


pytest.register_assert_rewrite("runs", "backends")  # they assert for the tests

import loopback_hub  # noqa: E402
import tiny  # noqa: E402


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Folder of the tiny model."""
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback: the client of this process is connected to it, logged in, with an empty cache."""
    with loopback_hub.LoopbackHub() as hub:
        loopback_hub.connect(hub, monkeypatch, str(tmp_path / "cache"))
        yield hub
